# Completion of modelstore for bash.
#
# What the store's models are called is up to whoever pushed them. A name is therefore only ever compared and quoted;
# nothing that expands or evaluates words (compgen -W, eval) sees it.

# Splits the command line up to the cursor as the shell would, without expanding anything: into `words` (the last one is
# being typed), `quote` (the quote that is open in it) and `kept` (how many of its characters readline leaves alone: it
# replaces only what follows an unquoted break character).
_modelstore_split() {
  local line=$1 char i
  words=("") quote="" kept=0
  for ((i = 0; i < ${#line}; i++)); do
    char=${line:i:1}
    if [[ $quote == "'" ]]; then
      if [[ $char == "'" ]]; then quote=""; else words[-1]+=$char; fi
    elif [[ $quote == '"' ]]; then
      if [[ $char == '"' ]]; then
        quote=""
      elif [[ $char == "\\" && ${line:i+1:1} == [\\\"\$\`] ]]; then
        i=$((i + 1))
        words[-1]+=${line:i:1}
      else
        words[-1]+=$char
      fi
    elif [[ $char == [\'\"] ]]; then
      quote=$char
      kept=${#words[-1]}
    elif [[ $char == "\\" ]]; then
      i=$((i + 1))
      words[-1]+=${line:i:1}
    elif [[ $char == [[:blank:]] ]]; then
      [[ ${line:i+1:1} == [[:blank:]] ]] || words+=("")
      kept=0
    else
      words[-1]+=$char
      [[ $char != [:=@] || $COMP_WORDBREAKS != *"$char"* ]] || kept=${#words[-1]}
    fi
  done
}

# Offers the lines of standard input that begin with `typed`.
_modelstore_offer() {
  local name
  while IFS= read -r name; do
    [[ $name == "$typed"* ]] || continue
    # Nothing keeps bash from expanding ! inside of double quotes.
    [[ $quote != '"' || $name != *!* ]] || continue
    name=${name:kept}
    case $quote in
      "'") name=${name//\'/"'\\''"} ;;
      '"') name=${name//[\\\"\$\`]/\\&} ;;
      *) printf -v name %q "$name" ;;
    esac
    # Readline closes the quote, unless the last character looks as if it did already.
    [[ -z $quote || $name != *"$quote" ]] || name+=$quote
    COMPREPLY+=("$name")
  done
}

_modelstore_offer_words() {
  _modelstore_offer < <(printf '%s\n' "$@")
}

_modelstore_offer_models() {
  _modelstore_offer < <(modelstore "${door[@]}" --quiet ls 2>/dev/null)
}

_modelstore() {
  local commands="push ls show report verify export rename rm prune compact derive status doctor warm mount unmount"
  local global="--store --socket --timeout --json --quiet --no-color --version --help"
  local how="--target-ratio --max-drift --rank --residual-step --bits --sparsity --group --schedule --moments --scale"
  local words quote kept typed previous command="" i positionals=0 options="" door=()
  COMPREPLY=()
  if [[ -n ${COMP_LINE-} ]]; then
    _modelstore_split "${COMP_LINE:0:COMP_POINT}"
  else
    _modelstore_split "${COMP_WORDS[*]:0:COMP_CWORD + 1}"
  fi

  for ((i = 1; i < ${#words[@]} - 1; i++)); do
    case ${words[i]} in
      --store | --socket) door+=("${words[i]}" "${words[i + 1]}") && i=$((i + 1)) ;;
      --store=* | --socket=*) door+=("${words[i]}") ;;
      --timeout | --name | --base | --fidelity | --memory-budget | --read-ahead-kb | --html) i=$((i + 1)) ;;
      --target-ratio | --max-drift | --rank | --residual-step | --bits | --sparsity | --group) i=$((i + 1)) ;;
      --schedule | --moments | --scale | --drop-layers | --keep-layers | --layer-names) i=$((i + 1)) ;;
      --slice | --basis | --plugin) i=$((i + 1)) ;;
      -*) ;;
      *) if [[ -z $command ]]; then command=${words[i]}; else positionals=$((positionals + 1)); fi ;;
    esac
  done
  typed=${words[-1]}
  previous=${words[-2]-}
  if [[ $typed == --*=* ]]; then
    previous=${typed%%=*}
    kept=$((kept > ${#previous} ? kept - ${#previous} - 1 : 0))
    typed=${typed#*=}
  fi

  case $previous in
    --store) compopt -o dirnames && return ;;
    --drop-layers) _modelstore_offer_words last: uniform: auto: && compopt -o nospace && return ;;
    --basis) _modelstore_offer_words block global && return ;;
    --schedule) _modelstore_offer_words uniform aptc rd && return ;;
    --html | --socket | --moments | --plugin) compopt -o default && return ;;
    --base) _modelstore_offer_words auto none && _modelstore_offer_models && return ;;
    --fidelity) _modelstore_offer_words exact compact && return ;;
    --timeout | --name | --memory-budget | --read-ahead-kb | --target-ratio | --max-drift | --rank) return ;;
    --keep-layers | --layer-names | --slice | --residual-step | --bits | --sparsity | --group | --scale) return ;;
  esac

  case $command in
    push) options="--name --base --update --replace-source --fidelity --allow-compact --or-exact $how --memory-budget" ;;
    compact) options="--base --yes $how --memory-budget" ;;
    derive)
      options="--name --drop-layers --keep-layers --slice --basis --moments --layer-names --update --memory-budget"
      ;;
    ls) options="--tree" ;;
    report) options="--html" ;;
    verify | export) options="--memory-budget" ;;
    rm) options="--dry-run --yes" ;;
    prune) options="--dry-run" ;;
    doctor) options="--gpu-verify --plugin" ;;
    mount) options="--read-ahead-kb --memory-budget" ;;
  esac
  if [[ $typed == -* ]]; then
    # shellcheck disable=SC2086  # fixed words
    _modelstore_offer_words $options $global
    return
  fi

  case $command in
    # shellcheck disable=SC2086  # fixed words
    "") _modelstore_offer_words $commands ;;
    push) compopt -o default ;;
    mount | unmount) compopt -o dirnames ;;
    export) if ((positionals == 0)); then _modelstore_offer_models; else compopt -o dirnames; fi ;;
    show | rm | rename | warm | compact | derive) if ((positionals == 0)); then _modelstore_offer_models; fi ;;
    verify) _modelstore_offer_models ;;
  esac
}

complete -F _modelstore modelstore
