# Completion of modelstore for bash.

_modelstore_models() {
  local store=$1
  modelstore ${store:+--store "$store"} --quiet ls 2>/dev/null
}

_modelstore() {
  local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]}
  local commands="push ls show report verify export rename rm prune mount unmount"
  local global="--store --json --quiet --no-color --version --help"
  local command="" store="" i positionals=0 options=""
  COMPREPLY=()

  for ((i = 1; i < COMP_CWORD; i++)); do
    case ${COMP_WORDS[i]} in
      --store) store=${COMP_WORDS[i + 1]} && ((i++)) ;;
      --name | --base | --fidelity | --memory-budget | --read-ahead-kb | --html) ((i++)) ;;
      =) ((i++)) ;;
      -*) ;;
      *) if [[ -z $command ]]; then command=${COMP_WORDS[i]}; else ((positionals++)); fi ;;
    esac
  done

  case $previous in
    --store) compopt -o dirnames && return ;;
    --html) compopt -o default && return ;;
    --base) mapfile -t COMPREPLY < <(compgen -W "auto none $(_modelstore_models "$store")" -- "$current") && return ;;
    --fidelity) mapfile -t COMPREPLY < <(compgen -W "exact" -- "$current") && return ;;
    --name | --memory-budget | --read-ahead-kb) return ;;
  esac

  case $command in
    push) options="--name --base --fidelity --memory-budget" ;;
    ls) options="--tree" ;;
    report) options="--html" ;;
    verify | export) options="--memory-budget" ;;
    rm) options="--dry-run --yes" ;;
    prune) options="--dry-run" ;;
    mount) options="--read-ahead-kb --memory-budget" ;;
  esac
  if [[ $current == -* ]]; then
    mapfile -t COMPREPLY < <(compgen -W "$options $global" -- "$current")
    return
  fi

  case $command in
    "") mapfile -t COMPREPLY < <(compgen -W "$commands" -- "$current") ;;
    push) compopt -o default ;;
    mount | unmount) compopt -o dirnames ;;
    export) if ((positionals == 0)); then
      mapfile -t COMPREPLY < <(compgen -W "$(_modelstore_models "$store")" -- "$current")
    else
      compopt -o dirnames
    fi ;;
    show | rm | rename) if ((positionals == 0)); then
      mapfile -t COMPREPLY < <(compgen -W "$(_modelstore_models "$store")" -- "$current")
    fi ;;
    verify) mapfile -t COMPREPLY < <(compgen -W "$(_modelstore_models "$store")" -- "$current") ;;
  esac
}

complete -F _modelstore modelstore
