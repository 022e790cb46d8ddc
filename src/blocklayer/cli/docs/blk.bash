# SPDX-License-Identifier: Apache-2.0
# Completion of blk for bash; made by 'blk completion bash'. No program is started to complete.
# shellcheck disable=SC2086 # lists of words are split, and never globbed: see 'set -f'

@TABLES@

# What blk would see of the line up to the cursor. bash splits words at = and : as well.
_blk_split() {
    local line=${COMP_LINE:0:COMP_POINT} word i
    words=()
    for ((i = 0; i <= COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        if ((i == 0)) || [[ $line == [[:space:]]* ]]; then
            line=${line#"${line%%[![:space:]]*}"}
            words+=("")
        fi
        ((i < COMP_CWORD)) || word=$line
        words[${#words[@]} - 1]+=$word
        line=${line:${#word}}
    done
    cur=${words[${#words[@]} - 1]}
}

# Read the words before the current one: command, given format and target format, and the option
# whose value the current word is.
_blk_read_words() {
    local word i plain=""
    for ((i = 1; i < ${#words[@]} - 1; i++)); do
        word=${words[i]}
        if [[ $expecting ]]; then
            _blk_note "$expecting" "$word"
            expecting=""
        elif [[ $plain || $word != -?* ]]; then
            [[ $command ]] || command=$word
        elif [[ $word == -- ]]; then
            plain=1
        elif [[ $word == --*=* ]]; then
            _blk_note "${word%%=*}" "${word#*=}"
        else
            _blk_read_option "$word"
        fi
    done
    [[ ! $plain ]] || operands_only=1
}

# One word of options; letters may stand together, the last one with its value.
_blk_read_option() {
    local word=$1 letters kind
    if [[ $word == --* ]]; then
        _blk_kind_of "$word"
        [[ ! $kind ]] || expecting=$word
        return
    fi
    letters=${word#-}
    while [[ $letters ]]; do
        _blk_kind_of "-${letters:0:1}"
        if [[ $kind ]]; then
            if [[ ${letters:1} ]]; then
                _blk_note "-${letters:0:1}" "${letters:1}"
            else
                expecting=-$letters
            fi
            return
        fi
        letters=${letters:1}
    done
}

_blk_note() {
    case $1 in
        -f | --format | --source-format | --a-format) given_format=$2 ;;
        -O | --target-format | --output-format) target_format=$2 ;;
    esac
}

# Offer words, each after what is fixed already ($stem).
_blk_offer() {
    local word
    for word; do
        word=$stem$word
        [[ $word == "$cur"* ]] && COMPREPLY+=("${word#"$prefix"}")
    done
}

# File names are the shell's own business: it knows how to quote them.
_blk_offer_files() {
    compopt -o default 2>/dev/null
}

_blk_offer_value() {
    case $1 in
        words:*) _blk_offer ${1#words:} ;;
        format) _blk_offer $_blk_formats ;;
        cache) _blk_offer $_blk_caches ;;
        file) _blk_offer_files ;;
        options) _blk_offer_format_options ;;
        io) _blk_offer_io ;;
    esac
}

# name=value,name=value: names of the chosen format, and values where they are known.
_blk_offer_format_options() {
    local list=${cur#"$stem"} format=$given_format item before="" name names kind
    [[ " $_blk_with_target " != *" $command "* ]] || format=$target_format
    format=${format:-raw}
    [[ $list != *,* ]] || before=${list%,*},
    item=${list##*,}
    stem+=$before
    compopt -o nospace 2>/dev/null
    if [[ $item == *=* ]]; then
        name=${item%%=*}
        stem+=$name=
        _blk_format_option_kind "$format" "$name"
        _blk_offer_value "$kind"
        return
    fi
    _blk_format_option_names "$format"
    for name in $names; do
        [[ ,$before == *",$name"* ]] || _blk_offer "$name"
    done
    [[ $before ]] || _blk_offer help
}

# The command of 'blk io -c': a word, or several in quotes.
_blk_offer_io() {
    local names
    [[ $stem ]] || cur=${cur#[\'\"]}
    compopt -o nospace 2>/dev/null
    if [[ $cur != *" "* ]]; then
        _blk_offer $_blk_io_commands
        return
    fi
    stem="${cur% *} "
    case ${cur%% *} in
        help | \?) _blk_offer $_blk_io_commands ;;
        *)
            _blk_io_options "${cur%% *}"
            [[ ${cur##* } != -* ]] || _blk_offer $names
            ;;
    esac
}

# --image-opts: the image is named by options.
_blk_offer_image_options() {
    local item=${cur##*,} before=""
    [[ $cur != *,* ]] || before=${cur%,*},
    stem=$before
    compopt -o nospace 2>/dev/null
    case $item in
        driver=*)
            stem+=driver=
            _blk_offer $_blk_formats
            ;;
        *filename=*) _blk_offer_files ;;
        *) _blk_offer driver= file.filename= ;;
    esac
}

_blk_offer_argument() {
    local names
    _blk_arguments "$command"
    if [[ $cur == *=* && " $names " == *" ${cur%%=*}= "* ]]; then
        case ${cur%%=*} in if | of) _blk_offer_files ;; esac
    elif [[ $names ]]; then
        [[ $names != *= ]] || compopt -o nospace 2>/dev/null
        _blk_offer $names
    elif [[ " ${words[*]} " == *" --image-opts "* ]]; then
        _blk_offer_image_options
    elif [[ " $_blk_commands " == *" $command "* ]]; then
        _blk_offer_files
    fi
}

_blk() {
    local words=() cur="" command="" given_format="" target_format="" expecting=""
    local operands_only="" stem="" prefix="" kind names
    local -
    set -f
    COMPREPLY=()
    _blk_split
    # What stands before the last = or : is a word of its own for bash.
    [[ $cur != *[=:]* ]] || prefix=${cur%"${cur##*[=:]}"}
    _blk_read_words
    if [[ $expecting ]]; then
        _blk_kind_of "$expecting"
        _blk_offer_value "$kind"
    elif [[ $cur == --*=* && ! $operands_only ]]; then
        stem=${cur%%=*}=
        _blk_kind_of "${cur%%=*}"
        [[ $kind ]] || _blk_kind_of "$stem" # a value that may be left out
        _blk_offer_value "$kind"
    elif [[ $cur == -* && ! $operands_only ]]; then
        _blk_option_names "$command"
        _blk_offer $names
        if [[ ! ${COMPREPLY[*]} && $cur == -[!-]* ]]; then
            stem=${cur:0:2}
            _blk_kind_of "$stem"
            _blk_offer_value "$kind"
        fi
    elif [[ ! $command ]]; then
        _blk_offer $_blk_commands
    else
        _blk_offer_argument
    fi
}

complete -F _blk blk
