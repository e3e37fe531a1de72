#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Make the completion of bash: gen_completion.py SCHEMA_SET OUT.bash OUT.c

The C file holds the same text for `copia completion`. Words are known when this is made; names of
nodes and jobs are asked of the daemon, silently and with a time limit.
"""
import sys

import copia_schema
from strip_options import write_if_changed

COMMON = ["--json", "--wide", "--no-header", "--help"]
ZSH = "#compdef copia\nautoload -U +X bashcompinit && bashcompinit\n"

HEAD = r"""# SPDX-License-Identifier: Apache-2.0
# bash completion for copia, made of its schema.
"""

BODY = r"""
# Names that only the cluster knows; nothing when it does not answer.
_copia_ask() {
	timeout 2 copia "$@" 2>/dev/null
}

_copia_values() { # $1: kind of value, $2: what was typed so far
	local kind=$1 typed=$2 before=
	case $kind in
	node) COMPREPLY=($(compgen -W "$(_copia_ask nodes --names)" -- "$typed")) ;;
	nodes | labnodes)
		# A list: complete what is behind the last comma.
		[[ $typed == *,* ]] && before=${typed%,*},
		COMPREPLY=($(compgen -P "$before" -W "all $(_copia_ask nodes --names)" -- "${typed##*,}"))
		;;
	job) COMPREPLY=($(compgen -W "$(_copia_ask ps --no-header | awk '{ print $1; print $2 }' | sort -u)" -- "$typed")) ;;
	labnode) COMPREPLY=($(compgen -W "$(_copia_ask lab status --json | tr ',{' '\n\n' | sed -n 's/.*"name": *"\(n[0-9]*\)".*/\1/p')" -- "$typed")) ;;
	verb) COMPREPLY=($(compgen -W "$_copia_first" -- "$typed")) ;;
	host) COMPREPLY=($(compgen -A hostname -- "$typed")) ;;
	file) COMPREPLY=($(compgen -f -- "$typed")) ;;
	folder) COMPREPLY=($(compgen -d -- "$typed")) ;;
	*\|*) COMPREPLY=($(compgen -W "${kind//|/ }" -- "$typed")) ;;
	esac
}

# The verb is the longest beginning of the words that is one; sets verb and used.
_copia_find_verb() {
	local words= i
	verb= used=0
	for ((i = 1; i < cword && i < 4; i++)); do
		words=${words:+$words }${line[i]}
		[[ ${_copia_options[$words]+there} ]] && verb=$words used=$i
	done
}

_copia() {
	# COMP_WORDS breaks at '=' and ':'; what bash typed into the line is split at blanks here.
	local line cword verb used word previous typed=${COMP_WORDS[COMP_CWORD]} i at kinds
	read -ra line <<<"${COMP_LINE:0:COMP_POINT}"
	[[ ${COMP_LINE:0:COMP_POINT} == *[[:space:]] ]] && line+=("")
	cword=$((${#line[@]} - 1)) word=${line[cword]}
	COMPREPLY=()
	((cword > 0)) || return
	_copia_find_verb
	if [[ -z $verb ]]; then
		local begin="${line[*]:1:cword-1}" next=
		for i in "${!_copia_options[@]}"; do
			[[ -z $begin ]] && next+=" ${i%% *}"
			[[ -n $begin && $i == "$begin "* ]] && { i=${i#"$begin "}; next+=" ${i%% *}"; }
		done
		COMPREPLY=($(compgen -W "$next" -- "$word"))
		return
	fi
	previous=${line[cword - 1]}
	if [[ $word == --*=* ]]; then
		_copia_values "${_copia_kinds["$verb ${word%%=*}"]}" "${word#*=}"
		return
	fi
	if [[ -n ${_copia_kinds["$verb $previous"]+there} ]]; then
		_copia_values "${_copia_kinds["$verb $previous"]}" "$word"
		return
	fi
	# Behind the verb's own words: how many positionals are there already?
	at=0
	for ((i = used + 1; i < cword; i++)); do
		case ${line[i]} in
		--) ;;
		-*) [[ -n ${_copia_kinds["$verb ${line[i]}"]+there} ]] && ((i++)) ;;
		*) ((at++)) ;;
		esac
	done
	read -ra kinds <<<"${_copia_positionals[$verb]}"
	local last=$((${#kinds[@]} - 1)) kind=
	((last >= 0)) && { ((at < last)) && kind=${kinds[at]} || kind=${kinds[last]}; }
	((last >= 0 && at > last)) && [[ $kind != *+ ]] && kind=
	kind=${kind%+}
	if [[ $kind == rest ]] && ((at > last)); then
		# Behind the program's name: its own words, most likely files.
		COMPREPLY=($(compgen -f -- "$word"))
		return
	fi
	if [[ $kind == rest && $word != -* ]]; then
		COMPREPLY=($(compgen -c -- "$word"))
		return
	fi
	if [[ $word == -* || -z $kind ]]; then
		COMPREPLY=($(compgen -W "${_copia_options[$verb]}" -- "$word"))
		return
	fi
	_copia_values "$kind" "$word"
}

complete -o filenames -o bashdefault -F _copia copia
"""


def kind_of(field):
    """What _copia_values is told: a kind, "a|b|c", or "-" for anything."""
    o = field.options
    if o.rest:
        return "rest+"
    kind = o.complete or o.allowed or "-"
    if "|" not in kind and o.allowed:
        kind = o.allowed + "|"
    return kind + ("+" if field.repeated and o.positional else "")


def table(name, rows):
    lines = "".join(f"\t[{key!r}]={value!r}\n" for key, value in rows)
    return f"declare -A {name}=(\n{lines})\n"


def script(schema):
    options, kinds, positionals = [], [], []
    for verb in schema.verbs:
        words = []
        for field in verb.options_typed:
            names = ["--" + field.typed_name()]
            if field.options.letter:
                names.append("-" + field.options.letter)
            words += names
            if not field.is_flag:
                kinds += [(f"{verb.words} {name}", kind_of(field)) for name in names]
        options.append((verb.words, " ".join(words + COMMON)))
        if verb.positionals:
            positionals.append((verb.words, " ".join(kind_of(f) for f in verb.positionals)))
    first = " ".join(dict.fromkeys(v.words.split()[0] for v in schema.verbs))
    return (HEAD + f"_copia_first={first!r}\n" + table("_copia_options", options)
            + table("_copia_kinds", kinds) + table("_copia_positionals", positionals) + BODY)


def c_text(name, text):
    lines = text.replace("\\", "\\\\").replace('"', '\\"').splitlines()
    return f"const char {name}[] =\n" + "".join(f'\t"{line}\\n"\n' for line in lines) + ";\n"


def main():
    _, set_path, bash_path, c_path = sys.argv
    bash = script(copia_schema.load(set_path))
    write_if_changed(bash_path, bash.encode())
    code = "/* Made of schema/ by tools/gen_completion.py. */\n"
    code += "extern const char completion_bash[], completion_zsh[];\n"
    code += c_text("completion_bash", bash) + c_text("completion_zsh", ZSH)
    write_if_changed(c_path, code.encode())


if __name__ == "__main__":
    main()
