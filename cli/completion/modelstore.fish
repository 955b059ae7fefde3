# Completion of modelstore for fish.
#
# What the store's models are called is up to whoever pushed them. A name is output of a command substitution, which fish
# neither expands nor evaluates, and quotes when it puts it on the command line.

function __modelstore_models
    set -l tokens (commandline -opc)
    set -l door
    for i in (seq (count $tokens))
        switch $tokens[$i]
            case --store --socket
                set -a door $tokens[$i] $tokens[(math $i + 1)]
            case '--store=*' '--socket=*'
                set -a door $tokens[$i]
        end
    end
    # A tilde at the front is the one thing that fish does not quote.
    command modelstore $door --quiet ls 2>/dev/null | string match -v -- '~*'
end

# The command, then how many words follow it, without flags and what belongs to them.
function __modelstore_words
    set -l with_value --store --socket --timeout --name --base --fidelity --memory-budget --read-ahead-kb --html --target-ratio \
        --max-drift --rank --residual-step --bits --sparsity --group --schedule --moments --scale --drop-layers \
        --keep-layers --layer-names --slice --basis --plugin
    set -l command
    set -l count 0
    set -l skip no
    for token in (commandline -opc)[2..-1]
        if test $skip = yes
            set skip no
        else if contains -- $token $with_value
            set skip yes
        else if string match -q -- '-*' $token
            continue
        else if test -z "$command"
            set command $token
        else
            set count (math $count + 1)
        end
    end
    printf '%s\n' "$command" $count
end

# Whether one of the commands given is being typed; none: whether no command is there yet.
function __modelstore_in
    set -l words (__modelstore_words)
    if test (count $argv) -eq 0
        test -z "$words[1]"
    else
        contains -- "$words[1]" $argv
    end
end

# Whether a command's first word that is no flag is being typed.
function __modelstore_first
    __modelstore_in $argv
    and test (__modelstore_words)[2] -eq 0
end

complete -c modelstore -f
complete -c modelstore -l store -x -a '(__fish_complete_directories)' -d 'Open this store without a daemon'
complete -c modelstore -l socket -r -F -d "The daemon's socket"
complete -c modelstore -l timeout -x -d 'How long the daemon may say nothing, in seconds'
complete -c modelstore -l json -d 'One JSON document on stdout'
complete -c modelstore -s q -l quiet -d 'No progress and no confirmations'
complete -c modelstore -l no-color -d 'No colours'
complete -c modelstore -l version -d 'The version'
complete -c modelstore -s h -l help -d Help

complete -c modelstore -n __modelstore_in -a push -d 'Store a file or folder as a model'
complete -c modelstore -n __modelstore_in -a ls -d 'List the models'
complete -c modelstore -n __modelstore_in -a show -d 'How a model is stored'
complete -c modelstore -n __modelstore_in -a report -d 'What the store holds and costs'
complete -c modelstore -n __modelstore_in -a verify -d 'Decode every file and check every hash'
complete -c modelstore -n __modelstore_in -a export -d 'Write plain files again'
complete -c modelstore -n __modelstore_in -a rename -d 'Give a model another name'
complete -c modelstore -n __modelstore_in -a rm -d 'Remove a model'
complete -c modelstore -n __modelstore_in -a prune -d 'Free what no model needs any more'
complete -c modelstore -n __modelstore_in -a compact -d 'Keep a finetune as a compact copy'
complete -c modelstore -n __modelstore_in -a derive -d 'A smaller variant of a stored model'
complete -c modelstore -n __modelstore_in -a status -d 'The daemon, its mount, its cache, its jobs'
complete -c modelstore -n __modelstore_in -a doctor -d 'What of this machine modelstore uses'
complete -c modelstore -n __modelstore_in -a warm -d "Read a model through the daemon's mount"
complete -c modelstore -n __modelstore_in -a mount -d 'Show the models as files below a folder'
complete -c modelstore -n __modelstore_in -a unmount -d 'End a mount'

complete -c modelstore -n '__modelstore_first show export rename rm compact derive warm' -a '(__modelstore_models)'
complete -c modelstore -n '__modelstore_in verify' -a '(__modelstore_models)'
complete -c modelstore -n '__modelstore_in push' -F
complete -c modelstore -n '__modelstore_in mount unmount' -a '(__fish_complete_directories)'
complete -c modelstore -n '__modelstore_in export; and not __modelstore_first export' -a '(__fish_complete_directories)'

complete -c modelstore -n '__modelstore_in push derive' -l name -x -d 'Name'
complete -c modelstore -n '__modelstore_in push derive' -l update -d 'Replace the model of that name'
complete -c modelstore -n '__modelstore_in push' -l base -x -a 'auto none (__modelstore_models)' -d 'Base'
complete -c modelstore -n '__modelstore_in compact' -l base -x -a 'auto (__modelstore_models)' -d 'Base'
complete -c modelstore -n '__modelstore_in push' -l replace-source -d 'Then put links in the place of the files'
complete -c modelstore -n '__modelstore_in push' -l fidelity -x -a 'exact compact' -d 'Every byte, or far smaller'
complete -c modelstore -n '__modelstore_in push' -l allow-compact -d 'The daemon may make it compact'
complete -c modelstore -n '__modelstore_in push' -l or-exact -d 'Exactly when not within --max-drift'
complete -c modelstore -n '__modelstore_in push compact' -l target-ratio -x -d 'So many times smaller'
complete -c modelstore -n '__modelstore_in push compact' -l max-drift -x -d 'At most this drift'
complete -c modelstore -n '__modelstore_in push compact' -l rank -x -d 'Factors for every tensor'
complete -c modelstore -n '__modelstore_in push compact' -l residual-step -x -d 'Step of the residual'
complete -c modelstore -n '__modelstore_in push compact' -l bits -x -d 'The delta in so many bits'
complete -c modelstore -n '__modelstore_in push compact' -l sparsity -x -d 'Share that is pruned'
complete -c modelstore -n '__modelstore_in push compact' -l group -x -d 'Elements of one scale'
complete -c modelstore -n '__modelstore_in push compact' -l schedule -x -a 'uniform aptc rd' -d 'How a budget is spread'
complete -c modelstore -n '__modelstore_in push compact' -l scale -x -a auto -d 'Factor of what is kept'
complete -c modelstore -n '__modelstore_in push compact derive' -l moments -r -F -d "The model's second moments"
complete -c modelstore -n '__modelstore_in derive' -l drop-layers -x -a 'last: uniform: auto:' -d 'Layers that go'
complete -c modelstore -n '__modelstore_in derive' -l keep-layers -x -d 'Layers that stay'
complete -c modelstore -n '__modelstore_in derive' -l slice -x -d 'Share of the hidden size to cut'
complete -c modelstore -n '__modelstore_in derive' -l basis -x -a 'block global' -d 'Axes of each block or of all'
complete -c modelstore -n '__modelstore_in derive' -l layer-names -x -d 'How tensors of a layer are named'
complete -c modelstore -n '__modelstore_in ls' -l tree -d 'Every model under its base'
complete -c modelstore -n '__modelstore_in report' -l html -r -F -d 'Also write a web page'
complete -c modelstore -n '__modelstore_in rm prune' -l dry-run -d 'Only say what would be freed'
complete -c modelstore -n '__modelstore_in rm compact' -l yes -d 'Do not ask'
complete -c modelstore -n '__modelstore_in doctor' -l gpu-verify -d 'Compare and measure every GPU'
complete -c modelstore -n '__modelstore_in doctor' -l plugin -r -F -d 'The GPU plug-in'
complete -c modelstore -n '__modelstore_in mount' -l read-ahead-kb -x -d "The kernel's read-ahead"
complete -c modelstore -n '__modelstore_in push verify export compact derive mount' -l memory-budget -x -d 'Memory, with --store'
