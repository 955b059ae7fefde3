// Extended attributes that the mount gives its files (layer: catalog/schema). The names end in a zero byte.
#pragma once

#include <string_view>

namespace modelstore {

inline constexpr std::string_view kInfoXattr = "user.modelstore.info";      // JSON, for people
inline constexpr std::string_view kSha256Xattr = "user.modelstore.sha256";  // of the content, in hex

}  // namespace modelstore
