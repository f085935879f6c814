// Names of the layouts, and the choice among them.

#include "ternary.h"

#include <cstring>

namespace ternary {

const char * layout_name(Layout layout) { return layout == Layout::two_bit ? "2bit" : "1.6bit"; }

LayoutSelection select_layout(const Kernels & kernels, const char * override_name) {
    if (override_name == nullptr || *override_name == '\0') {
        return {true, kernels.preferred, ""};
    }
    bool known = false;
    std::string names;
    for (const Layout layout : all_layouts) {
        const bool named = std::strcmp(override_name, layout_name(layout)) == 0;
        if (kernels.offers(layout)) {
            if (named) {
                return {true, layout, ""};
            }
            names += (names.empty() ? "" : ", ") + std::string(layout_name(layout));
        }
        known = known || named;
    }
    return {false, Layout::two_bit,
            "weight layout '" + std::string(override_name) + "' is " +
                (known ? "not offered by kernel tier " + std::string(kernels.name) : std::string("unknown to this build")) +
                "; expected one of: " + names + "; name one of them, or none to get the fastest"};
}

}  // namespace ternary
