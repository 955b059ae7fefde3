# Precompiled headers: most of the time that a file takes goes into parsing what it includes. Three targets hold one
# each, and every other one uses that of the three which it is nearest to. Files still include what they need: a build
# with MODELSTORE_PCH=OFF, as the dev preset is, knows nothing of this.
option(MODELSTORE_PCH "Precompile the headers that most files include" ON)
set(MODELSTORE_STD_HEADERS
    <algorithm> <array> <atomic> <bit> <chrono> <cmath> <condition_variable> <cstdint> <cstring> <deque> <filesystem>
    <functional> <limits> <map> <memory> <mutex> <numeric> <optional> <random> <set> <shared_mutex> <span> <string>
    <string_view> <thread> <unordered_map> <unordered_set> <utility> <variant> <vector>)

# A target that only holds a precompiled header: ms_precompiled(pch_cold COLD HEADERS <nlohmann/json.hpp> DEPS nlohmann_json::nlohmann_json)
# COLD: for targets that are optimized as ms_library's COLD ones are; from gcc 13 on -O1 and -O3 differ in target options,
# and a header precompiled with others is not used.
function(ms_precompiled name)
  cmake_parse_arguments(ARG "COLD" "" "HEADERS;DEPS" ${ARGN})
  if(NOT MODELSTORE_PCH)
    return()
  endif()
  set(source ${CMAKE_BINARY_DIR}/${name}.cc)
  file(GENERATE OUTPUT ${source} CONTENT "")
  add_library(${name} OBJECT ${source})
  target_link_libraries(${name} PRIVATE ${ARG_DEPS})
  target_precompile_headers(${name} PRIVATE ${MODELSTORE_STD_HEADERS} ${ARG_HEADERS})
  if(ARG_COLD)
    target_compile_options(${name} PRIVATE $<$<CONFIG:Release>:-O1>)
  endif()
endfunction()

# Gives a target the precompiled header that fits what it links and how it is optimized. `cold`: ms_library's COLD.
function(ms_use_precompiled name cold)
  if(NOT MODELSTORE_PCH)
    return()
  endif()
  get_target_property(linked ${name} LINK_LIBRARIES)
  if("GTest::gtest" IN_LIST linked)
    target_precompile_headers(${name} REUSE_FROM pch_test)
  elseif(cold)
    target_precompile_headers(${name} REUSE_FROM pch_cold)
  else()
    target_precompile_headers(${name} REUSE_FROM pch_std)
  endif()
endfunction()
