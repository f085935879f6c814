// An environment variable that leaves a part of the work to llama.cpp.
#pragma once

#include <cstdlib>
#include <string>

class StockSwitch {
  public:
    // `what` completes "llama.cpp's own ...": "kernels", "attention".
    StockSwitch(const char * variable, const char * what) {
        const char * text = std::getenv(variable);
        value_            = text == nullptr ? "" : text;
        if (!ours() && !stock()) {
            error_ = std::string(variable) + " is '" + value_ + "'; expected 'stock' for llama.cpp's own " + what +
                     ", or nothing for bitexport's";
        }
    }

    bool ours() const { return value_.empty(); }
    bool stock() const { return value_ == "stock"; }

    // What is wrong with the value; NULL if nothing is.
    const char * error() const { return error_.empty() ? nullptr : error_.c_str(); }

  private:
    std::string value_;
    std::string error_;
};
