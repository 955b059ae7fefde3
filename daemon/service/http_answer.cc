#include "daemon/service/http_answer.h"

namespace modelstore {
namespace {

constexpr std::string_view kHeadEnd = "\r\n\r\n";
constexpr std::string_view kTextType = "text/plain; charset=utf-8";
constexpr std::string_view kMetricsType = "text/plain; version=0.0.4; charset=utf-8";

struct RequestLine {
  std::string_view method, path;
};

std::string Answer(std::string_view status, std::string_view type, std::string_view body, bool send_body = true) {
  std::string answer = "HTTP/1.1 ";
  answer.append(status).append("\r\nContent-Type: ").append(type);
  answer.append("\r\nContent-Length: ").append(std::to_string(body.size()));
  if (status.starts_with("405")) answer += "\r\nAllow: GET, HEAD";
  answer += "\r\nConnection: close\r\n\r\n";
  if (send_body) answer += body;
  return answer;
}

std::string Failure(std::string_view status) { return Answer(status, kTextType, std::string(status.substr(4)) + "\n"); }

// METHOD SP TARGET SP HTTP/1.x; false for anything else. The path is the target up to its query.
bool ParseRequestLine(std::string_view line, RequestLine& request) {
  const size_t first = line.find(' '), last = line.rfind(' ');
  if (first == 0 || first == last || !line.substr(last + 1).starts_with("HTTP/1.")) return false;
  const std::string_view target = line.substr(first + 1, last - first - 1);
  if (!target.starts_with('/') || target.find(' ') != std::string_view::npos) return false;
  request = {line.substr(0, first), target.substr(0, target.find('?'))};
  return true;
}

}  // namespace

bool HttpHeadEnded(std::string_view received) {
  return received.size() > kMaxHttpHead || received.find(kHeadEnd) != std::string_view::npos;
}

std::string HttpAnswer(std::string_view received, const std::function<std::string()>& text) {
  const size_t end = received.find(kHeadEnd);
  if (end == std::string_view::npos || end > kMaxHttpHead) return Failure("431 Request Header Fields Too Large");
  RequestLine request;
  if (!ParseRequestLine(received.substr(0, received.find("\r\n")), request)) return Failure("400 Bad Request");
  if (request.path != "/metrics") return Failure("404 Not Found");
  if (request.method != "GET" && request.method != "HEAD") return Failure("405 Method Not Allowed");
  return Answer("200 OK", kMetricsType, text(), request.method == "GET");
}

}  // namespace modelstore
