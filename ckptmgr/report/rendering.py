"""The page: facts and figures in a template that escapes everything, with plotly's own script inside.

No byte of it comes from the network, and a policy in the page refuses every script but the two that it came with, by their
digests: even what would slip through the escaping does not run.
"""

import base64
import hashlib
from importlib.resources import files

from ckptmgr import MissingDependencyError
from ckptmgr.report import shown
from ckptmgr.report.contents import Contents


def render(contents: Contents) -> str:
    """The whole page as HTML.

    Raises:
        MissingDependencyError: jinja2 or plotly is not installed.
    """
    try:
        import jinja2
        from plotly.offline import get_plotlyjs
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"a report is made with jinja2 and plotly ({error}): pip install 'ckptmgr[report]'"
        ) from error
    loader = jinja2.PackageLoader("ckptmgr.report", "page")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    environment.filters |= shown.FILTERS
    scripts = {"plotly": get_plotlyjs(), "script": _text("page.js")}
    return environment.get_template("page.html").render(
        contents=contents,
        run=contents.run,
        figures={figure.name: figure.to_json() for figure in contents.figures},
        style=_text("page.css"),
        digests=[_digest(text) for text in scripts.values()],
        **scripts,
    )


def _text(name: str) -> str:
    return files("ckptmgr.report").joinpath("page", name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
