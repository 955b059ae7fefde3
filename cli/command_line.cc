#include "cli/command_line.h"

#include <signal.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/session.h"
#include "cli/terminal.h"
#include "codec/json/json_text.h"
#include "codec/support/guarded.h"
#include "codec/support/utf8.h"

namespace modelstore {
namespace {

// The options that stand before or after the command: every level of the parser has its own copy, so that a model may
// be called like a command.
struct GlobalWords {
  std::string store, socket, timeout;
  bool json = false, quiet = false, no_color = false, version = false;

  void AddTo(CLI::App& app) {
    app.set_help_flag("-h,--help", "this help");
    app.add_option("--store", store, "open this store without a daemon (else MODELSTORE_STORE)")
        ->type_name("DIR")
        ->group("Global");
    app.add_option("--socket", socket, "the daemon's socket (else MODELSTORE_SOCKET, the user's, the system's)")
        ->type_name("PATH")
        ->group("Global");
    app.add_option("--timeout", timeout,
                   "how long the daemon may say nothing, 0 for ever (else MODELSTORE_TIMEOUT; 10 for status, ls and "
                   "show)")
        ->type_name("SECONDS")
        ->group("Global");
    app.add_flag("--json", json, "one JSON document on stdout, errors too")->group("Global");
    app.add_flag("-q,--quiet", quiet, "no progress and no confirmations; ls prints names only")->group("Global");
    app.add_flag("--no-color", no_color, "no colours (else NO_COLOR)")->group("Global");
    app.add_flag("--version", version, "the version")->group("Global");
  }
};

// A command's words while they are parsed; CLI11 keeps pointers into it.
struct CommandWords {
  CLI::App* app = nullptr;
  GlobalWords global;
  std::deque<std::string> values;
  std::deque<bool> flags;
  std::deque<std::string> words;
  std::deque<std::vector<std::string>> lists;

  void AddTo(CLI::App& parent, const CommandSpec& spec) {
    app = parent.add_subcommand(std::string(spec.name), std::string(spec.summary));
    for (const PositionalSpec& positional : spec.positionals) {
      const std::string name(positional.name), help(positional.help);
      if (positional.any_number)
        app->add_option(name, lists.emplace_back(), help)->type_name("");
      else
        app->add_option(name, words.emplace_back(), help)->type_name("")->required();
    }
    for (const OptionSpec& option : spec.options) {
      if (option.value.empty())
        app->add_flag(std::string(option.name), flags.emplace_back(false), std::string(option.help));
      else
        app->add_option(std::string(option.name), values.emplace_back(), std::string(option.help))
            ->type_name(std::string(option.value));
    }
    global.AddTo(*app);
  }

  Arguments Collect(const CommandSpec& spec) const {
    Arguments out;
    size_t word = 0, list = 0, flag = 0, value = 0;
    for (const PositionalSpec& positional : spec.positionals) {
      if (!positional.any_number) {
        out.positionals.push_back(words[word++]);
        continue;
      }
      const std::vector<std::string>& given = lists[list++];
      out.positionals.insert(out.positionals.end(), given.begin(), given.end());
    }
    for (const OptionSpec& option : spec.options) {
      const std::string name(option.name);
      if (option.value.empty()) {
        if (flags[flag++]) out.flags.insert(name);
      } else {
        if (app->get_option(name)->count() != 0) out.values[name] = values[value];
        ++value;
      }
    }
    return out;
  }
};

std::string Json(const nlohmann::ordered_json& document) {
  return EscapeInJson(JsonText(document, JsonStyle::kIndented)) + "\n";
}

// Handlers answer on one line; people read --json too. Nothing for a command that has printed its document already.
std::string Indented(const std::string& document) {
  if (document.empty()) return "";
  const auto parsed = TryParseOrderedJson(document);
  return parsed.is_discarded() ? document + "\n" : Json(parsed);
}

// Ends the process with `exit_code` after `text` went to stdout, quietly when nobody reads it.
int Print(std::string_view text, int exit_code) {
  const int error = WriteAll(STDOUT_FILENO, text);
  if (error == 0) return exit_code;
  if (error == EPIPE) {
    signal(SIGPIPE, SIG_DFL);
    raise(SIGPIPE);
  }
  WriteAll(STDERR_FILENO, "modelstore: writing to standard output: " + std::string(std::strerror(error)) + "\n");
  return exit_code != 0 ? exit_code : 1;
}

int PrintError(const Status& status, const GlobalOptions& global) {
  const int exit_code = StatusCodeExit(status.code());
  if (global.json) {
    nlohmann::ordered_json document;
    document["error"]["code"] = std::string(StatusCodeName(status.code()));
    document["error"]["message"] = std::string(status.message());
    return Print(Json(document), exit_code);
  }
  const Style style = StyleOf(STDERR_FILENO, global.no_color);
  WriteAll(STDERR_FILENO, Painted("modelstore:", Tone::kBad, style) + " " + Printable(status.message()) + "\n");
  return exit_code;
}

std::string FromEnvironment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

// Flags win over the environment, a store over a socket.
Status ChooseDoor(const std::string& store, const std::string& socket, GlobalOptions& global) {
  const bool is_flag = !store.empty() || !socket.empty();
  ASSIGN_OR_RETURN(global.store, HomeExpanded(is_flag ? store : FromEnvironment("MODELSTORE_STORE")));
  if (!global.store.empty()) return OkStatus();
  ASSIGN_OR_RETURN(global.socket, HomeExpanded(socket.empty() ? FromEnvironment("MODELSTORE_SOCKET") : socket));
  return OkStatus();
}

Result<std::optional<unsigned>> ChooseTimeout(const std::string& flag) {
  constexpr uint64_t kMaxSeconds = 1'000'000;
  const std::string text = flag.empty() ? FromEnvironment("MODELSTORE_TIMEOUT") : flag;
  if (text.empty()) return std::optional<unsigned>();
  const Result<uint64_t> seconds = ParseCount(text, 0, kMaxSeconds);
  if (!seconds.ok()) return seconds.status().WithContext(flag.empty() ? "MODELSTORE_TIMEOUT" : "--timeout");
  return std::optional(static_cast<unsigned>(*seconds));
}

// --json and --no-color hold for usage errors too, which are found before the words are understood.
GlobalOptions GuessGlobal(const std::vector<std::string>& words) {
  const auto end = std::find(words.begin(), words.end(), "--");
  GlobalOptions global;
  global.json = std::find(words.begin(), end, "--json") != end;
  global.no_color = std::find(words.begin(), end, "--no-color") != end;
  return global;
}

}  // namespace

Result<Invocation> ParseCommandLine(const std::vector<std::string>& words) {
  CLI::App app("Keeps model checkpoints in a fraction of their size and shows them as ordinary files.", "modelstore");
  GlobalWords global;
  global.AddTo(app);
  app.require_subcommand(0, 1);
  const std::span<const CommandSpec> specs = Commands();
  std::deque<CommandWords> commands;
  for (const CommandSpec& spec : specs) commands.emplace_back().AddTo(app, spec);

  Invocation out;
  try {
    std::vector<std::string> reversed(words.rbegin(), words.rend());
    app.parse(std::move(reversed));
  } catch (const CLI::CallForHelp&) {
    out.text = app.help();
    return out;
  } catch (const CLI::ParseError& error) {
    std::string where = "modelstore";
    for (const CommandWords& command : commands)
      if (command.app->parsed()) where += " " + command.app->get_name();
    return InvalidArgument(std::string(error.what()) + "; see '" + where + " --help'");
  }

  for (size_t i = 0; i < specs.size(); ++i) {
    if (!commands[i].app->parsed()) continue;
    out.command = &specs[i];
    out.arguments = commands[i].Collect(specs[i]);
    const GlobalWords& own = commands[i].global;
    if (!own.store.empty()) global.store = own.store;  // the nearer one
    if (!own.socket.empty()) global.socket = own.socket;
    if (!own.timeout.empty()) global.timeout = own.timeout;
    global.json |= own.json;
    global.quiet |= own.quiet;
    global.no_color |= own.no_color;
    global.version |= own.version;
  }
  out.global.json = global.json;
  out.global.quiet = global.quiet;
  out.global.no_color = global.no_color;
  RETURN_IF_ERROR(ChooseDoor(global.store, global.socket, out.global));
  ASSIGN_OR_RETURN(out.global.timeout_seconds, ChooseTimeout(global.timeout));
  if (global.version) {
    out.command = nullptr;
    out.text = global.json ? Json({{"version", MODELSTORE_VERSION}}) : "modelstore " MODELSTORE_VERSION "\n";
    return out;
  }
  if (out.command == nullptr) return InvalidArgument("no command given; see 'modelstore --help'");
  return out;
}

int RunModelstore(const std::vector<std::string>& words) {
  Result<Invocation> parsed = ParseCommandLine(words);
  if (!parsed.ok()) return PrintError(parsed.status(), GuessGlobal(words));
  const Invocation& invocation = *parsed;
  if (invocation.command == nullptr) return Print(invocation.text, 0);

  const Result<Outcome> outcome = Guarded([&] {
    // The store is closed before anything is printed: a reader that goes away cannot interrupt that.
    Session session(invocation.global);
    return invocation.command->run(session, invocation.arguments);
  });
  if (!outcome.ok()) return PrintError(outcome.status(), invocation.global);
  return Print(invocation.global.json ? Indented(outcome->document) : outcome->text, outcome->exit_code);
}

}  // namespace modelstore
