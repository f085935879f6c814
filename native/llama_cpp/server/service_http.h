// The side of service.h that knows the HTTP library of llama-server.
#pragma once

#include <string>

namespace httplib {
class Server;
struct Request;
struct Response;
}  // namespace httplib

namespace bitexport {

// Sets limits and headers of a listener. Does nothing unless `bitexport serve` started the process.
void prepare_listener(httplib::Server & server);

// Begins the record of a request whose headers were read.
void arrive(const httplib::Request & request);

// Whether the request goes on; otherwise the response says why not. Its body has not been read yet.
bool admit(const httplib::Request & request, httplib::Response & response);

// The same when the body has been read: from here on the request is counted.
bool admit_complete(const httplib::Request & request, httplib::Response & response);

// Whether a path belongs to the web page, which a browser fetches before it has the key.
bool is_page(const std::string & path);

}  // namespace bitexport
