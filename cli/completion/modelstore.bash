# Completion of modelstore for bash.

_modelstore_models() {
  modelstore "$@" --quiet ls 2>/dev/null
}

_modelstore() {
  local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]}
  local commands="push ls show report verify export rename rm prune compact derive status doctor warm mount unmount"
  local global="--store --socket --json --quiet --no-color --version --help"
  local how="--target-ratio --max-drift --rank --residual-step --bits --sparsity --group --schedule --moments --scale"
  local command="" i positionals=0 options="" door=()
  COMPREPLY=()

  for ((i = 1; i < COMP_CWORD; i++)); do
    case ${COMP_WORDS[i]} in
      --store | --socket) door+=("${COMP_WORDS[i]}" "${COMP_WORDS[i + 1]}") && ((i++)) ;;
      --name | --base | --fidelity | --memory-budget | --read-ahead-kb | --html) ((i++)) ;;
      --target-ratio | --max-drift | --rank | --residual-step | --bits | --sparsity | --group) ((i++)) ;;
      --schedule | --moments | --scale | --drop-layers | --keep-layers | --layer-names | --slice | --basis | --plugin) ((i++)) ;;
      =) ((i++)) ;;
      -*) ;;
      *) if [[ -z $command ]]; then command=${COMP_WORDS[i]}; else ((positionals++)); fi ;;
    esac
  done

  case $previous in
    --store) compopt -o dirnames && return ;;
    --drop-layers) mapfile -t COMPREPLY < <(compgen -W "last: uniform: auto:" -- "$current") && compopt -o nospace && return ;;
    --basis) mapfile -t COMPREPLY < <(compgen -W "block global" -- "$current") && return ;;
    --schedule) mapfile -t COMPREPLY < <(compgen -W "uniform aptc rd" -- "$current") && return ;;
    --html | --socket | --moments | --plugin) compopt -o default && return ;;
    --base) mapfile -t COMPREPLY < <(compgen -W "auto none $(_modelstore_models "${door[@]}")" -- "$current") && return ;;
    --fidelity) mapfile -t COMPREPLY < <(compgen -W "exact compact" -- "$current") && return ;;
    --name | --memory-budget | --read-ahead-kb | --target-ratio | --max-drift | --rank) return ;;
    --keep-layers | --layer-names | --slice | --residual-step | --bits | --sparsity | --group | --scale) return ;;
  esac

  case $command in
    push) options="--name --base --update --replace-source --fidelity --allow-compact --or-exact $how --memory-budget" ;;
    compact) options="--base --yes $how --memory-budget" ;;
    derive) options="--name --drop-layers --keep-layers --slice --basis --moments --layer-names --update --memory-budget" ;;
    ls) options="--tree" ;;
    report) options="--html" ;;
    verify | export) options="--memory-budget" ;;
    rm) options="--dry-run --yes" ;;
    prune) options="--dry-run" ;;
    doctor) options="--gpu-verify --plugin" ;;
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
      mapfile -t COMPREPLY < <(compgen -W "$(_modelstore_models "${door[@]}")" -- "$current")
    else
      compopt -o dirnames
    fi ;;
    show | rm | rename | warm | compact | derive) if ((positionals == 0)); then
      mapfile -t COMPREPLY < <(compgen -W "$(_modelstore_models "${door[@]}")" -- "$current")
    fi ;;
    verify) mapfile -t COMPREPLY < <(compgen -W "$(_modelstore_models "${door[@]}")" -- "$current") ;;
  esac
}

complete -F _modelstore modelstore
