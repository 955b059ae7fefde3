#include "codec/tensor/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace modelstore {
namespace {

using ::testing::HasSubstr;

// The 8 length bytes and the JSON.
Bytes Header(std::string_view json) {
  ByteWriter w;
  w.U64(json.size());
  w.Append(AsBytes(json));
  return w.Release();
}

Result<TensorIndex> Parse(std::string_view json, uint64_t data_bytes = 1024) {
  const Bytes header = Header(json);
  return ParseSafetensorsHeader(header, header.size() + data_bytes);
}

std::string Tensor(std::string_view name, std::string_view dtype, std::string_view shape, std::string_view offsets) {
  return "\"" + std::string(name) + "\":{\"dtype\":\"" + std::string(dtype) + "\",\"shape\":" + std::string(shape) +
         ",\"data_offsets\":" + std::string(offsets) + "}";
}

void ExpectCorrupt(std::string_view json, std::string_view why, uint64_t data_bytes = 1024) {
  const Result<TensorIndex> r = Parse(json, data_bytes);
  ASSERT_FALSE(r.ok()) << json.substr(0, 200);
  EXPECT_EQ(r.status().code(), StatusCode::kCorruption) << r.status().ToString();
  EXPECT_THAT(r.status().ToString(), HasSubstr(std::string(why))) << json.substr(0, 200);
}

TEST(SafetensorsLength, AcceptsWhatFits) {
  ByteWriter w;
  w.U64(100);
  const Result<uint64_t> r = SafetensorsHeaderBytes(w.view(), 108);
  ASSERT_TRUE(r.ok());
  EXPECT_EQ(*r, 108u);
}

TEST(SafetensorsLength, RefusesTruncatedAndLyingLengths) {
  const Bytes seven(7);
  EXPECT_EQ(SafetensorsHeaderBytes(seven, 7).status().code(), StatusCode::kCorruption);
  EXPECT_EQ(SafetensorsHeaderBytes({}, 0).status().code(), StatusCode::kCorruption);
  for (const uint64_t length : {uint64_t{101}, kSafetensorsMaxHeaderBytes + 1, uint64_t{1} << 63, ~uint64_t{0}}) {
    ByteWriter w;
    w.U64(length);
    EXPECT_EQ(SafetensorsHeaderBytes(w.view(), 108).status().code(), StatusCode::kCorruption) << length;
  }
  ByteWriter w;
  w.U64(kSafetensorsMaxHeaderBytes + 1);
  EXPECT_THAT(SafetensorsHeaderBytes(w.view(), uint64_t{1} << 40).status().ToString(), HasSubstr("limit"));
}

TEST(SafetensorsLength, HeaderMustBeWhole) {
  const Bytes header = Header("{}");
  EXPECT_FALSE(ParseSafetensorsHeader(ByteSpan(header).first(9), 100).ok());
  Bytes longer = header;
  longer.push_back(std::byte{' '});
  EXPECT_FALSE(ParseSafetensorsHeader(longer, 100).ok());
  EXPECT_TRUE(ParseSafetensorsHeader(header, 100).ok());
}

TEST(Safetensors, SortsByPositionWithAbsoluteOffsets) {
  const std::string json = "{\"__metadata__\":{\"format\":\"pt\"}," + Tensor("b", "BF16", "[2,3]", "[16,28]") + "," +
                           Tensor("a", "F32", "[4]", "[0,16]") + "}   ";
  const Result<TensorIndex> r = Parse(json);
  ASSERT_TRUE(r.ok()) << r.status().ToString();
  ASSERT_EQ(r.value().tensors.size(), 2u);
  EXPECT_EQ(r.value().header_bytes, 8 + json.size());
  const TensorEntry& a = r.value().tensors[0];
  const TensorEntry& b = r.value().tensors[1];
  EXPECT_EQ(a.name, "a");
  EXPECT_EQ(a.dtype, DType::kF32);
  EXPECT_EQ(a.begin, 8 + json.size());
  EXPECT_EQ(b.dtype, DType::kBF16);
  EXPECT_EQ(b.shape, (std::vector<uint64_t>{2, 3}));
  EXPECT_EQ(b.begin, 8 + json.size() + 16);
  EXPECT_EQ(b.end, 8 + json.size() + 28);
}

TEST(Safetensors, AcceptsEmptyScalarsGapsAndZeroElements) {
  EXPECT_TRUE(Parse("{}").ok());
  EXPECT_TRUE(Parse("{}", 0).ok());
  EXPECT_TRUE(Parse("{\"__metadata__\":{}}").ok());
  const Result<TensorIndex> r =
      Parse("{" + Tensor("scalar", "F64", "[]", "[0,8]") + "," + Tensor("none", "F32", "[0,7]", "[8,8]") + "," +
            Tensor("also", "I8", "[0]", "[8,8]") + "," + Tensor("after a gap", "U8", "[4]", "[100,104]") + "}");
  ASSERT_TRUE(r.ok()) << r.status().ToString();
  EXPECT_EQ(r.value().tensors.size(), 4u);
  EXPECT_TRUE(r.value().tensors[0].shape.empty());
}

TEST(Safetensors, AcceptsEveryDType) {
  for (uint8_t n = 1; n < kDTypeCount; ++n) {
    const auto dtype = static_cast<DType>(n);
    const Result<TensorIndex> r =
        Parse("{" + Tensor("t", DTypeName(dtype), "[3]", "[0," + std::to_string(3 * DTypeBytes(dtype)) + "]") + "}");
    ASSERT_TRUE(r.ok()) << r.status().ToString();
    EXPECT_EQ(r.value().tensors[0].dtype, dtype);
  }
}

TEST(Safetensors, UnknownDTypeIsOpaqueBytes) {
  const Result<TensorIndex> r = Parse("{" + Tensor("packed", "F4", "[10]", "[0,5]") + "}");
  ASSERT_TRUE(r.ok()) << r.status().ToString();
  EXPECT_EQ(r.value().tensors[0].dtype, DType::kOpaque);
  EXPECT_EQ(r.value().tensors[0].shape, std::vector<uint64_t>{5});
}

TEST(Safetensors, NamesAreOnlyNames) {
  for (const char* name : {"../../etc/passwd", "/etc/shadow", "a\\nb", "..", "", "\\u00e9\\u4e2d", "a/b"}) {
    const Result<TensorIndex> r = Parse("{" + Tensor(name, "U8", "[1]", "[0,1]") + "}");
    EXPECT_TRUE(r.ok()) << name << ": " << r.status().ToString();
  }
  EXPECT_EQ(Parse("{" + Tensor("a\\nb", "U8", "[1]", "[0,1]") + "}").value().tensors[0].name, "a\nb");
}

TEST(Safetensors, RefusesNulInNames) {
  ExpectCorrupt("{" + Tensor("a\\u0000b", "U8", "[1]", "[0,1]") + "}", "NUL");
  const std::string raw = std::string("{\"a") + '\0' + "b\":{}}";
  ExpectCorrupt(raw, "NUL");
  ExpectCorrupt(std::string("{}") + '\0' + "{\"unread\":1}", "NUL");
}

TEST(Safetensors, RefusesOverlongNames) {
  ExpectCorrupt("{" + Tensor(std::string(65536, 'n'), "U8", "[1]", "[0,1]") + "}", "longer than");
  EXPECT_TRUE(Parse("{" + Tensor(std::string(65535, 'n'), "U8", "[1]", "[0,1]") + "}").ok());
}

TEST(Safetensors, MessagesEscapeHostileNames) {
  const Result<TensorIndex> r =
      Parse("{" + Tensor("\\u001b[31m\\n\\\"" + std::string(500, 'x'), "U8", "7", "[0,1]") + "}");
  ASSERT_FALSE(r.ok());
  const std::string message = r.status().ToString();
  EXPECT_EQ(message.find('\x1b'), std::string::npos);
  EXPECT_EQ(message.find('\n'), std::string::npos);
  EXPECT_THAT(message, HasSubstr("\\x1b[31m\\x0a\\x22xxx"));
  EXPECT_LT(message.size(), 400u);
}

TEST(Safetensors, RefusesDuplicateFields) {
  ExpectCorrupt("{\"__metadata__\":{},\"__metadata__\":{}}", "__metadata__ appears twice");
  ExpectCorrupt("{\"__metadata__\":null,\"__metadata__\":{}}", "__metadata__ appears twice");
  ExpectCorrupt("{\"t\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}",
                "dtype appears twice");
  ExpectCorrupt("{\"t\":{\"dtype\":\"U8\",\"shape\":[1],\"shape\":[1],\"data_offsets\":[0,1]}}", "shape appears twice");
}

// What follows is opened by the reference implementation (the package safetensors, 0.8.0) as it is here.
TEST(Safetensors, TheLastTensorOfANameCounts) {
  const Result<TensorIndex> r =
      Parse("{" + Tensor("t", "U8", "[99]", "[0,9999]") + "," + Tensor("u", "U8", "[1]", "[1,2]") + "," +
            Tensor("\\u0074", "I8", "[1]", "[0,1]") + "}");
  ASSERT_TRUE(r.ok()) << r.status().ToString();
  ASSERT_EQ(r->tensors.size(), 2u);
  EXPECT_EQ(r->tensors[0].name, "t");
  EXPECT_EQ(r->tensors[0].dtype, DType::kI8);
  EXPECT_EQ(r->tensors[1].name, "u");
  EXPECT_TRUE(Parse("{\"__metadata__\":{\"a\":\"1\",\"b\":\"\",\"a\":\"2\"}}").ok());
}

TEST(Safetensors, MetadataMayBeNull) {
  const Result<TensorIndex> r = Parse("{\"__metadata__\":null," + Tensor("t", "U8", "[1]", "[0,1]") + "}");
  ASSERT_TRUE(r.ok()) << r.status().ToString();
  EXPECT_EQ(r->tensors.size(), 1u);
}

TEST(Safetensors, PassesOverFieldsThatItDoesNotKnow) {
  const std::string known = "\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]";
  for (const char* value :
       {"1", "-1", "1.5e3", "123456789012345678901234567890", "null", "true", "\"y\"", "[]", "{}",
        "[1,[2,{\"dtype\":\"F32\",\"shape\":[[]]}],-1,\"s\"]", "{\"shape\":[1],\"x\":{\"y\":{}},\"x\":null}"}) {
    for (const std::string& fields : {known + ",\"x\":" + value, "\"x\":" + std::string(value) + "," + known}) {
      const Result<TensorIndex> r = Parse("{\"a\":{" + fields + "}," + Tensor("b", "U8", "[1]", "[4,5]") + "}");
      ASSERT_TRUE(r.ok()) << fields << ": " << r.status().ToString();
      ASSERT_EQ(r->tensors.size(), 2u) << fields;
      EXPECT_EQ(r->tensors[0].shape, std::vector<uint64_t>{4}) << fields;
      EXPECT_EQ(r->tensors[0].dtype, DType::kU8) << fields;
    }
  }
  const auto nested = [&](size_t levels) {
    return Parse("{\"a\":{\"x\":" + std::string(levels, '[') + std::string(levels, ']') + "," + known + "}}");
  };
  EXPECT_TRUE(nested(125).ok());
  EXPECT_FALSE(nested(126).ok());
  ExpectCorrupt("{\"a\":{\"x\":1e999," + known + "}}", "not JSON");
}

TEST(Safetensors, BlanksMayStandBeforeTheObject) {
  for (const char* blanks : {" ", "\t", "\n", "\r", " \n\t\r  "}) {
    const Result<TensorIndex> r = Parse(blanks + ("{" + Tensor("t", "U8", "[1]", "[0,1]") + "}"));
    ASSERT_TRUE(r.ok()) << r.status().ToString();
    EXPECT_EQ(r->tensors.size(), 1u);
  }
}

TEST(Safetensors, MoreDimensionsThan64AreOne) {
  std::string ones;
  for (int i = 0; i < 64; ++i) ones += "1,";
  Result<TensorIndex> r = Parse("{" + Tensor("a", "BF16", "[" + ones + "4,3]", "[0,24]") + "}");
  ASSERT_TRUE(r.ok()) << r.status().ToString();
  ASSERT_EQ(r->tensors[0].shape.size(), 64u);
  EXPECT_EQ(r->tensors[0].shape.back(), 12u);
  ExpectCorrupt("{" + Tensor("a", "U8", "[" + ones + "4294967296,4294967296]", "[0,1]") + "}", "overflows");
  std::string many = "[1";
  for (int i = 0; i < 1'000'000; ++i) many += ",1";
  r = Parse("{" + Tensor("a", "U8", many + "]", "[0,1]") + "}");
  ASSERT_TRUE(r.ok()) << r.status().ToString();
  EXPECT_EQ(r->tensors[0].shape.size(), 64u);
}

TEST(Safetensors, AnyFileMayBeOne) {
  const auto may_be = [](ByteSpan begin, uint64_t bytes) { return MayBeSafetensors(begin, bytes); };
  const Bytes header = Header("{}"), blank = Header(" {}");
  EXPECT_TRUE(may_be(ByteSpan(header).first(9), header.size()));
  EXPECT_TRUE(may_be(ByteSpan(blank).first(9), blank.size()));
  EXPECT_FALSE(may_be(ByteSpan(header).first(9), 9));
  EXPECT_FALSE(may_be(ByteSpan(header).first(8), 8));
  EXPECT_FALSE(may_be({}, 0));
  EXPECT_FALSE(may_be(AsBytes("{\"a\": 1}  "), 1000));
  EXPECT_FALSE(may_be(ByteSpan(Header("[]")).first(9), 10));
}

TEST(Safetensors, RefusesOverlap) {
  ExpectCorrupt("{" + Tensor("a", "U8", "[8]", "[0,8]") + "," + Tensor("b", "U8", "[8]", "[7,15]") + "}", "overlaps");
  ExpectCorrupt("{" + Tensor("a", "U8", "[8]", "[0,8]") + "," + Tensor("b", "U8", "[8]", "[0,8]") + "}", "overlaps");
  ExpectCorrupt("{" + Tensor("a", "U8", "[8]", "[0,8]") + "," + Tensor("b", "U8", "[0]", "[4,4]") + "}", "overlaps");
}

TEST(Safetensors, RefusesOffsetsOutsideTheFile) {
  ExpectCorrupt("{" + Tensor("a", "U8", "[8]", "[1020,1028]") + "}", "outside the data section of 1024 bytes");
  ExpectCorrupt("{" + Tensor("a", "U8", "[1]", "[18446744073709551614,18446744073709551615]") + "}", "outside");
  ExpectCorrupt("{" + Tensor("a", "U8", "[8]", "[8,0]") + "}", "outside");
  EXPECT_TRUE(Parse("{" + Tensor("a", "U8", "[8]", "[1016,1024]") + "}").ok());
}

TEST(Safetensors, RefusesSizesThatDisagree) {
  ExpectCorrupt("{" + Tensor("a", "F32", "[2]", "[0,7]") + "}", "need 8 bytes, data_offsets give 7");
  ExpectCorrupt("{" + Tensor("a", "F32", "[]", "[0,0]") + "}", "need 4 bytes");
  ExpectCorrupt("{" + Tensor("a", "F32", "[0]", "[0,4]") + "}", "need 0 bytes");
}

TEST(Safetensors, RefusesOverflowingShapes) {
  ExpectCorrupt("{" + Tensor("a", "U8", "[4294967296,4294967296]", "[0,0]") + "}", "overflows");
  ExpectCorrupt("{" + Tensor("a", "F4", "[4294967296,4294967297]", "[0,0]") + "}", "overflows");
  ExpectCorrupt("{" + Tensor("a", "F64", "[2305843009213693952]", "[0,0]") + "}", "overflows");
}

TEST(Safetensors, RefusesNumbersThatAreNotNonNegativeIntegers) {
  for (const char* bad :
       {"-1", "1.0", "1e3", "-0", "18446744073709551616", "1e999", "null", "true", "\"1\"", "[1]", "{}"}) {
    ExpectCorrupt("{" + Tensor("a", "U8", "[" + std::string(bad) + "]", "[0,1]") + "}", "");
    ExpectCorrupt("{" + Tensor("a", "U8", "[1]", "[0," + std::string(bad) + "]") + "}", "");
  }
  ExpectCorrupt("{" + Tensor("a", "U8", "[-1]", "[0,1]") + "}", "non-negative integers, found the negative number -1");
  ExpectCorrupt("{" + Tensor("a", "U8", "[1]", "[0]") + "}", "two numbers");
  ExpectCorrupt("{" + Tensor("a", "U8", "[1]", "[0,1,1]") + "}", "two numbers");
  ExpectCorrupt("{" + Tensor("a", "U8", "[1]", "[]") + "}", "two numbers");
}

TEST(Safetensors, RefusesWrongTypesAndFields) {
  ExpectCorrupt("{\"a\":1}", "expected an object");
  ExpectCorrupt("{\"a\":[]}", "expected an object");
  ExpectCorrupt("{\"a\":null}", "expected an object");
  ExpectCorrupt("{\"a\":{}}", "must all be present");
  ExpectCorrupt("{\"a\":{\"dtype\":\"U8\",\"shape\":[1]}}", "must all be present");
  ExpectCorrupt("{\"a\":{\"dtype\":3,\"shape\":[1],\"data_offsets\":[0,1]}}", "dtype must be a string");
  ExpectCorrupt("{\"a\":{\"dtype\":\"U8\",\"shape\":1,\"data_offsets\":[0,1]}}", "shape must be an array");
  ExpectCorrupt("{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":{}}}", "data_offsets must be an array");
  ExpectCorrupt("{\"__metadata__\":[]}", "must be an object");
  ExpectCorrupt("{\"__metadata__\":\"x\"}", "must be an object");
  ExpectCorrupt("{\"__metadata__\":{\"a\":1}}", "only strings");
  ExpectCorrupt("{\"__metadata__\":{\"a\":{}}}", "only strings");
}

TEST(Safetensors, RefusesWhatIsNotJson) {
  for (const char* bad : {"",
                          " ",
                          " []",
                          "[]",
                          "\f{}",
                          "null",
                          "{",
                          "{}}",
                          "{} x",
                          "{\"a\"",
                          "{\"a\":",
                          "{\"a\":}",
                          "{,}",
                          "{\"a\":{\"dtype\":\"U8\"",
                          "{'a':1}",
                          "{}//",
                          "\xef\xbb\xbf{}",
                          "{\"\xff\":{}}",
                          "{\"\\ud800\":{}}",
                          "{\"a\nb\":{}}"})
    ExpectCorrupt(bad, "safetensors header");
}

TEST(Safetensors, RefusesDeepNestingWithoutRecursion) {
  ExpectCorrupt(std::string(1, '{') + "\"a\":" + std::string(10'000'000, '['), "found an array");
  std::string objects = "{";
  for (int i = 0; i < 100'000; ++i) objects += "\"a\":{";
  ExpectCorrupt(objects, "");
  ExpectCorrupt("{\"a\":{\"shape\":" + std::string(1'000'000, '['), "shape must hold");
}

TEST(Safetensors, RefusesHugeTokens) {
  constexpr size_t kHuge = 20'000'000;
  ExpectCorrupt("{\"" + std::string(kHuge, 'x'), "more than 16 MiB");
  ExpectCorrupt("{\"a\":{\"shape\":[" + std::string(kHuge, '1') + "]}}", "more than 16 MiB");
  ExpectCorrupt("{\"__metadata__\":{\"a\":\"\\\"" + std::string(kHuge, '[') + "\"}}", "more than 16 MiB");
  EXPECT_TRUE(Parse("{\"__metadata__\":{\"a\":\"" + std::string(kHuge / 2, 'x') + "\"}}").ok());
  EXPECT_TRUE(Parse("{" + std::string(kHuge, ' ') + "}").ok());
}

TEST(Safetensors, ParsesAHeaderOfManyTensors) {
  std::string json = "{";
  constexpr int kTensors = 200'000;
  for (int i = 0; i < kTensors; ++i) json += Tensor("t" + std::to_string(i), "U8", "[0]", "[0,0]") + ",";
  json.back() = '}';
  const Result<TensorIndex> r = Parse(json, 0);
  ASSERT_TRUE(r.ok()) << r.status().ToString();
  EXPECT_EQ(r.value().tensors.size(), static_cast<size_t>(kTensors));
}

TEST(Safetensors, EveryTruncationOfAGoodHeaderIsRefused) {
  const std::string json = "{\"__metadata__\":{\"a\":\"b\"}," + Tensor("t", "BF16", "[2,3]", "[0,12]") + "}";
  for (size_t n = 0; n < json.size(); ++n) EXPECT_FALSE(Parse(json.substr(0, n)).ok()) << n;
  EXPECT_TRUE(Parse(json).ok());
}

}  // namespace
}  // namespace modelstore
