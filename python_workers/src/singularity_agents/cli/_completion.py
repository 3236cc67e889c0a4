"""`completion bash|zsh|fish`: made from the command line itself, so that it cannot go stale."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ._main import OK, Context

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from ._main import Parser


def add(commands: _SubParsersAction[Parser], shared: Parser) -> None:
    """Adds the command."""
    completion = commands.add_parser("completion", parents=[shared], help="completion for a shell")
    completion.description = 'example: eval "$(singularity completion bash)"'
    completion.add_argument("shell", choices=["bash", "zsh", "fish"])
    completion.set_defaults(run=print_completion)


def words(parser: argparse.ArgumentParser, path: str = "") -> dict[str, list[str]]:
    """Words that may follow each command, by its path."""
    found: dict[str, list[str]] = {path: []}
    for action in parser._actions:
        found[path] += [option for option in action.option_strings if option.startswith("--")]
        choices: Any = action.choices
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in choices.items():
                found[path].append(name)
                found |= words(inner, f"{path} {name}".strip())
        elif choices and not action.option_strings:
            found[path] += [str(choice) for choice in choices]
    return found


def print_completion(ctx: Context) -> int:
    """Prints the script."""
    from ._main import parser

    table = words(parser())
    if ctx.args.shell == "fish":
        for path, follow in table.items():
            parts = path.split()
            seen = (
                "".join(f"; and __fish_seen_subcommand_from {part}" for part in parts) if parts else "; and __fish_use_subcommand"
            )
            ctx.io.line(f"complete -c singularity -f -n 'true{seen}' -a '{' '.join(follow)}'")
        return OK
    cases = "\n".join(f"        '{path}') words='{' '.join(follow)}' ;;" for path, follow in table.items())
    if ctx.args.shell == "zsh":
        ctx.io.line("autoload -U +X bashcompinit && bashcompinit")
    ctx.io.line(
        f"""_singularity() {{
    local words= path= word
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case $word in -*) ;; *) path="${{path:+$path }}$word" ;; esac
    done
    while :; do
        case $path in
{cases}
        esac
        [ -n "$words" ] || [ -z "$path" ] && break
        case $path in *' '*) path=${{path% *}} ;; *) path= ;; esac
    done
    COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _singularity singularity"""
    )
    return OK
