"""`rlhf annotate`: collect and check the judgments of people. One module per command."""

from __future__ import annotations

import typer

from rlhf_cli.cli.annotate import adjudicate, dump, export, import_, judge, qc, select, serve, status, users
from rlhf_cli.stages import STAGES

annotate = typer.Typer(help="Collect, check and export the judgments of people.", no_args_is_help=True)
annotate.add_typer(users.user, name="user")
annotate.command("import")(import_.import_)
annotate.command("serve")(serve.serve)
annotate.command("status")(status.status)
annotate.command("qc")(qc.qc)
annotate.command("adjudicate")(adjudicate.adjudicate)
annotate.command("judge")(judge.judge)
annotate.command("dump")(dump.dump)
annotate.command("select")(select.select)
annotate.command("export", help=STAGES["feedback"].help)(export.export)
