#include <gtest/gtest.h>

#include <string>

#include "cli/commands.h"

namespace modelstore {
namespace {

constexpr Style kPlain = {};
constexpr Style kUnicode = {.color = false, .unicode = true, .width = 80};

std::string Model(const std::string& name, const std::string& base) {
  return R"({"name":")" + name + R"(","kind":"model","fidelity":"exact","base":)" +
         (base.empty() ? "null" : "\"" + base + "\"") +
         R"(,"files":1,"logical_bytes":2000,"stored_bytes":500,"shared_bytes":0,"created":"2026-01-01T00:00:00Z"})";
}

// The first column of every line but the headings, without padding.
std::string First(const std::string& text) {
  std::string out;
  for (size_t at = text.find('\n') + 1; at < text.size(); at = text.find('\n', at) + 1)
    out += text.substr(at, text.find("  model", at) - at) + "\n";
  for (size_t at; (at = out.find(" \n")) != std::string::npos;) out.erase(at, 1);
  return out;
}

TEST(RenderPush, IsOneLine) {
  const std::string line = RenderPush(
      R"({"name":"smollm2-135m-kdoc","base":"smollm2-135m","fidelity":"exact","files":2,"logical_bytes":269060552,
          "stored_bytes":28900000,"seconds":1.24,"verified":true,"levels":{"identical_file":0,"identical_tensor":0,
          "self":0,"delta":269060552,"raw":0,"content":0,"compact":0,"projected":0}})",
      kPlain);
  EXPECT_EQ(line,
            "stored smollm2-135m-kdoc: 269.1 MB -> 28.9 MB (10.7 %), delta against smollm2-135m, verified, 1.2 s\n");
}

TEST(RenderPush, SaysWhatWasThereAndStandsNothing) {
  const std::string levels =
      R"("levels":{"identical_file":3000,"identical_tensor":1000,"self":0,"delta":0,"raw":0,"content":0,"compact":0,"projected":0})";
  EXPECT_EQ(RenderPush(R"({"name":"e","base":null,"logical_bytes":0,"stored_bytes":90,"seconds":0,"verified":true,)" +
                           levels + "}",
                       kPlain),
            "stored e: 0 B -> 90 B, verified, 0.0 s\n"
            "  already stored: 3.0 kB in identical files, 1.0 kB in identical tensors\n");
}

TEST(RenderPush, SaysWhatBecameLinks) {
  const std::string push = R"({"name":"m","base":null,"logical_bytes":2000,"stored_bytes":1000,"seconds":0,
      "verified":true,"levels":{"identical_file":0,"identical_tensor":0},"replaced_files":1,"replaced_bytes":2000,)";
  EXPECT_EQ(RenderPush(push + R"("left_files":[]})", kPlain),
            "stored m: 2.0 kB -> 1.0 kB (50.0 %), verified, 0.0 s\n"
            "  replaced by links: 1 file, 2.0 kB\n");
  EXPECT_EQ(RenderPush(push + R"("left_files":[{"path":"/m/a","reason":"it changed"}]})", kPlain),
            "stored m: 2.0 kB -> 1.0 kB (50.0 %), verified, 0.0 s\n"
            "  replaced by links: 1 file, 2.0 kB; left as they are: 1 file\n");
}

// A daemon may say anything: that is an error, whatever it is, never a crash.
TEST(Render, ThrowsForADocumentOfAnotherShape) {
  for (const char* document : {"{", "null", "[]", "{}", R"({"models":[{}],"files":[{}],"jobs":[{}],"failed":[{}]})"}) {
    EXPECT_ANY_THROW(RenderPush(document, kPlain)) << document;
    EXPECT_ANY_THROW(RenderLs(document, true, kPlain)) << document;
    EXPECT_ANY_THROW(RenderShow(document, kPlain)) << document;
    EXPECT_ANY_THROW(RenderReport(document, kPlain)) << document;
    EXPECT_ANY_THROW(RenderReportHtml(document)) << document;
    EXPECT_ANY_THROW(RenderVerify(document, kPlain)) << document;
    EXPECT_ANY_THROW(RenderExport(document, kPlain)) << document;
    EXPECT_ANY_THROW(RenderRm(document, kPlain)) << document;
    EXPECT_ANY_THROW(RenderPrune(document, kPlain)) << document;
    EXPECT_ANY_THROW(RenderWarm(document, kPlain)) << document;
    EXPECT_ANY_THROW(RenderStatus(document, kPlain)) << document;
  }
}

TEST(RenderWarm, IsOneLine) {
  EXPECT_EQ(RenderWarm(R"({"name":"m","files":2,"bytes":269000000,"seconds":0.5})", kPlain),
            "warmed m: 2 files, 269.0 MB, 0.5 s (538.0 MB/s)\n");
  EXPECT_EQ(RenderWarm(R"({"name":"m","files":0,"bytes":0,"seconds":0})", kPlain), "warmed m: 0 files, 0 B, 0.0 s\n");
}

constexpr char kCacheAndDecoder[] =
    R"("memory_budget_bytes":2000000000,"resident_bytes":412300000,
       "cache":{"bytes":120000000,"capacity_bytes":1500000000,"hits":970,"misses":30,"waits":0,"decoded_bytes":7800000},
       "decode":{"target":"avx512","gpu":null})";

TEST(RenderStatus, ShowsTheDaemon) {
  EXPECT_EQ(RenderStatus(R"({"version":"0.1.0","store":"/s","mount":"/models","read_ahead_kb":8192,)" +
                             std::string(kCacheAndDecoder) + R"(,"pid":12,"uptime_seconds":185,"clients":2,"jobs":[
          {"id":1,"request":"push","uid":1000,"model":"llama","phase":"storing","done_bytes":1000,"total_bytes":4000},
          {"id":2,"request":"status","uid":0,"model":null,"phase":null,"done_bytes":0,"total_bytes":0},
          {"id":3,"request":"verify","uid":0,"model":null,"phase":"checking","done_bytes":0,"total_bytes":0}]})",
                         kPlain),
            "modelstored 0.1.0, process 12, up 3 min 05 s\n"
            "  store     /s\n"
            "  mount     /models, read-ahead 8192 KiB\n"
            "  memory    412.3 MB resident, budget 2.0 GB\n"
            "  cache     120.0 MB of 1.5 GB, 97.0 % of 1,000 blocks found decoded\n"
            "  decoder   avx512, 7.8 MB decoded\n"
            "  clients   2\n"
            "  jobs      push llama (user 1000): storing 1.0 kB of 4.0 kB (25.0 %)\n"
            "            verify (user 0): checking\n");
}

TEST(RenderStatus, ShowsAStoreWithoutADaemon) {
  EXPECT_EQ(RenderStatus(R"({"version":"0.1.0","store":"/s","mount":null,"read_ahead_kb":null,)" +
                             std::string(kCacheAndDecoder) + "}",
                         kPlain),
            "modelstore 0.1.0, without a daemon\n"
            "  store     /s\n"
            "  mount     none\n"
            "  memory    412.3 MB resident, budget 2.0 GB\n"
            "  cache     120.0 MB of 1.5 GB, 97.0 % of 1,000 blocks found decoded\n"
            "  decoder   avx512, 7.8 MB decoded\n");
}

TEST(RenderLs, ListsModels) {
  const std::string text = RenderLs(R"({"models":[)" + Model("a", "") + "," + Model("b", "a") + "]}", false, kPlain);
  EXPECT_EQ(text,
            "MODEL  KIND     SIZE  STORED  SHARED  STORED/SIZE  BASE\n"
            "a      model  2.0 kB   500 B       -       25.0 %  -\n"
            "b      model  2.0 kB   500 B       -       25.0 %  a\n");
  EXPECT_NE(RenderLs(R"({"models":[]})", false, kPlain).find("no models"), std::string::npos);
}

TEST(RenderLs, TreeShowsFamilies) {
  const std::string models = R"({"models":[)" + Model("a", "") + "," + Model("b", "a") + "," + Model("c", "b") + "," +
                             Model("d", "a") + "," + Model("x", "gone") + "]}";
  EXPECT_EQ(First(RenderLs(models, true, kPlain)), "a\n|- b\n|  `- c\n`- d\nx\n");
  EXPECT_EQ(First(RenderLs(models, true, kUnicode)), "a\n├─ b\n│  └─ c\n└─ d\nx\n");
}

TEST(RenderLs, TreeEndsWhenBasesFormARing) {
  const std::string models =
      R"({"models":[)" + Model("a", "b") + "," + Model("b", "a") + "," + Model("self", "self") + "]}";
  EXPECT_EQ(First(RenderLs(models, true, kPlain)), "a\n`- b\nself\n");
}

TEST(Rendering, EscapesHostileNames) {
  const std::string models = R"({"models":[)" + Model("evil\\u001b[2J", "") + "]}";
  const std::string text = RenderLs(models, false, kPlain);
  EXPECT_EQ(text.find('\x1b'), std::string::npos);
  EXPECT_NE(text.find("evil\\x1b[2J"), std::string::npos) << text;
}

constexpr std::string_view kReport =
    R"({"logical_bytes":4000,"stored_bytes":1000,"disk_bytes":1200,"saved_fraction":0.75,"prunable_bytes":100,
        "levels":{"identical_file":0,"identical_tensor":0,"self":2000,"delta":2000,"raw":0,"content":0,"compact":0,"projected":0},
        "models":[{"name":"a<b>","kind":"base","fidelity":"exact","base":null,"files":1,"logical_bytes":4000,
        "stored_bytes":1000,"shared_bytes":0,"created":"","levels":{"identical_file":0,"identical_tensor":0,
        "self":2000,"delta":2000,"raw":0,"content":0,"compact":0,"projected":0}}]})";

TEST(RenderReport, SumsUp) {
  EXPECT_EQ(RenderReport(kReport, kPlain),
            "1 model, 4.0 kB of files, stored in 1.0 kB: 75.0 % saved (4.0x)\n"
            "on disk 1.2 kB, 'modelstore prune' frees 100 B\n"
            "\n"
            "HOW IT IS STORED        SIZE    SHARE\n"
            "delta against a base  2.0 kB   50.0 %\n"
            "coded by itself       2.0 kB   50.0 %\n"
            "total                 4.0 kB  100.0 %\n"
            "\n"
            "MODEL  KIND    SIZE  STORED  SHARED  IDENTICAL   DELTA    SELF  OTHER  BASE\n"
            "a<b>   base  4.0 kB  1.0 kB       -          -  2.0 kB  2.0 kB      -  -\n"
            "total        4.0 kB  1.0 kB       -\n");
}

TEST(RenderReport, PageEscapesNames) {
  const std::string page = RenderReportHtml(kReport);
  EXPECT_NE(page.find("a&lt;b&gt;"), std::string::npos);
  EXPECT_EQ(page.find("a<b>"), std::string::npos);
  EXPECT_EQ(page.find("http"), std::string::npos) << "the page must need nothing else";
}

TEST(RenderVerify, NamesWhatFailed) {
  EXPECT_EQ(RenderVerify(R"({"checked":2,"checked_bytes":1000,"failed":[]})", kPlain),
            "2 files checked, 1.0 kB decoded: all good\n");
  EXPECT_EQ(RenderVerify(R"({"checked":2,"checked_bytes":1000,"failed":[{"model":"m","file":"f","reason":"bad"},
                            {"model":"","file":"","reason":"lost"}]})",
                         kPlain),
            "2 files checked, 1.0 kB decoded: 2 failures\n  m/f: bad\n  the store: lost\n");
}

TEST(RenderRm, SaysWhenNothingHappened) {
  EXPECT_EQ(RenderRm(R"({"models":["m"],"freed_bytes":1000,"dry_run":true})", kPlain),
            "would remove m\n'modelstore prune' would then free 1.0 kB\n");
  EXPECT_EQ(RenderRm(R"({"models":["m"],"freed_bytes":1000,"dry_run":false})", kPlain),
            "removed m\n'modelstore prune' frees 1.0 kB\n");
  EXPECT_EQ(RenderRm(R"({"models":["m"],"freed_bytes":0,"dry_run":false})", kPlain),
            "removed m\nnothing to free: other models need all that it holds\n");
}

TEST(RenderPrune, ShowsTheDiskAfterwardsWhenItChanged) {
  const std::string counts = R"("tensors":0,"files":0,"blocks":0,"dry_run":false,"disk_bytes_before":2000,)";
  EXPECT_EQ(RenderPrune(R"({"freed_bytes":0,)" + counts + R"("disk_bytes_after":2000})", kPlain),
            "nothing to prune; on disk 2.0 kB\n");
  EXPECT_EQ(RenderPrune(R"({"freed_bytes":0,)" + counts + R"("disk_bytes_after":1000})", kPlain),
            "nothing to prune; on disk 2.0 kB -> 1.0 kB\n");
}

TEST(RenderShow, ListsTensors) {
  EXPECT_EQ(RenderShow(R"({"name":"m","kind":"finetune","fidelity":"exact","base":"b","logical_bytes":1024,
        "stored_bytes":100,"shared_bytes":0,"created":"2026-01-01T00:00:00Z","files":[{"path":"m.safetensors",
        "kind":"safetensors","sha256":"ab","logical_bytes":1024,"stored_bytes":100,"tensors":[{"name":"w",
        "dtype":"BF16","shape":[16,32],"encoding":"delta","base":"b","base_tensor":"w","logical_bytes":1024,
        "stored_bytes":90}]}]})",
                       kPlain),
            "m  finetune, exact\n"
            "  base     b\n"
            "  size     1.0 kB (1,024 bytes)\n"
            "  stored   100 B (100 bytes), 9.8 %\n"
            "  created  2026-01-01T00:00:00Z\n"
            "\n"
            "FILE           KIND           SIZE  STORED  SHA-256\n"
            "m.safetensors  safetensors  1.0 kB   100 B  ab\n"
            "\n"
            "m.safetensors: 1 tensor\n"
            "TENSOR  DTYPE  SHAPE    STORED AS    SIZE  STORED  BASE\n"
            "w       BF16   16 x 32  delta      1.0 kB    90 B  b\n");
}

}  // namespace
}  // namespace modelstore
