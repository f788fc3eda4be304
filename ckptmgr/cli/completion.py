"""``ckptmgr completion``: what a shell needs to complete commands, options, paths and steps at the press of a key."""

from typing import Annotated, Literal

import typer

from ckptmgr.cli.output import emit

Shell = Annotated[Literal["bash", "zsh", "fish"], typer.Argument(metavar="SHELL", help="bash, zsh or fish.", show_default=False)]

# What the shells call is typer's; where it offers nothing, each completes file names.
_BASH = """\
_ckptmgr_completion() {
    local IFS=$'\\n'
    COMPREPLY=( $(COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD=$COMP_CWORD _CKPTMGR_COMPLETE=complete_bash "$1" 2>/dev/null) )
}
complete -o default -F _ckptmgr_completion ckptmgr
"""
_ZSH = """\
#compdef ckptmgr
_ckptmgr_completion() {
    eval $(env _TYPER_COMPLETE_ARGS="${words[1,$CURRENT]}" _CKPTMGR_COMPLETE=complete_zsh ckptmgr 2>/dev/null)
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
compdef _ckptmgr_completion ckptmgr
"""
_FISH_CALL = (
    "env _CKPTMGR_COMPLETE=complete_fish _TYPER_COMPLETE_FISH_ACTION={} "
    "_TYPER_COMPLETE_ARGS=(commandline -cp) ckptmgr 2>/dev/null"
)
_FISH = f"""\
complete --command ckptmgr --no-files --arguments "({_FISH_CALL.format("get-args")})" --condition "{_FISH_CALL.format("is-args")}"
complete --command ckptmgr --force-files --condition "not {_FISH_CALL.format("is-args")}"
"""
_SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def completion(shell: Shell) -> None:
    """Print what completes ckptmgr's commands in a shell.

    Put it where your shell reads it at its start: the line below into ~/.bashrc (for zsh, with zsh in it, into ~/.zshrc), or
    the text into ~/.config/fish/completions/ckptmgr.fish.
    """
    for line in _SCRIPTS[shell].splitlines():
        emit(line)
