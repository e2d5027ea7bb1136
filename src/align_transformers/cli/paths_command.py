"""`align-transformers paths`: path patching."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import AsJson, BasePrompt, LastTokens, ModelName, OutFolder, Quiet, SourcePrompt, TwoAnswers, names, two
from .running import Job

if TYPE_CHECKING:
    from ..table import Table


def paths(
    base: BasePrompt,
    source: SourcePrompt,
    model: ModelName = "smollm2-135m",
    to: Annotated[
        str, typer.Option(help="Who receives: logits, m9, b9, 'a9.h6<q>', with commas between them.")
    ] = "logits",
    senders: Annotated[str, typer.Option(help="Who sends: heads, mlps, all, or names such as a9.h6,m3.")] = "heads",
    freeze: Annotated[
        str, typer.Option(help="What passes nothing on: attention, all (the direct effect), none (the total effect).")
    ] = "attention",
    last: LastTokens = None,
    answers: TwoAnswers = None,
    out: OutFolder = Path("."),
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """What does each head tell the receivers, along the edges between them and no others?

    A sender's output is that of the source's run; all that is frozen keeps its value of the base's run; the receivers
    get what comes of it (path patching, Wang et al. 2022). The map shows by layer and head what that does to the
    logit of the source's answer minus the base's. `paths.parquet`, `paths.png` and `paths.html` are written.

    **Examples**

    `align-transformers paths "The capital of Spain is" "The capital of Italy is"`

    `align-transformers paths "The capital of Spain is" "The capital of Italy is" --to "a20.h3<v>" --freeze all`
    """
    receivers, chosen = names(to, []), names(senders, [])

    def study(loaded: Any, **given: Any) -> Table:
        from ..studies import path_patching

        who: Any = chosen[0] if chosen[0] in ("heads", "mlps", "all") and len(chosen) == 1 else chosen
        asked: dict[str, Any] = {"senders": who, "freeze": freeze, "last": last, "answers": two(answers)}
        return path_patching(loaded, base, source, receivers, **asked, **given)

    two(answers)  # a mistake here is worth no waiting for the model
    Job("paths", out, as_json, quiet).run(model, study, "sending")
