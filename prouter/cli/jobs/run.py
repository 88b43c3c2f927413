"""``prouter run``: runs a job as if it ran here."""

from __future__ import annotations

import os
from collections.abc import Sequence

import click

from prouter.cli.remote.command import OutputCommand
from prouter.cli.remote.completion import complete_agents
from prouter.cli.remote.connection import LONG, connect
from prouter.cli.remote.durations import DURATION
from prouter.cli.remote.exits import Exit
from prouter.cli.remote.failures import Failure, describe
from prouter.cli.remote.names import find_agent
from prouter.cli.remote.output import output_kind
from prouter.cli.running.plans import Plan, exposed, properties, variables, where_of
from prouter.cli.running.running import Running
from prouter.cli.running.wanted import conditions, resources, slurm_options
from prouter.cli.views.jobs import emit_jobs
from prouter.client import Router, RouterError

__all__ = ["command"]

_PRESETS = ("jupyterlab", "notebook", "streamlit", "dash", "gradio", "bokeh", "panel", "uvicorn", "voila", "marimo",
            "mlflow", "vite", "code-server", "datasette", "tensorboard")  # fmt: skip


@click.command("run", cls=OutputCommand, context_settings={"ignore_unknown_options": False})
@click.argument("args", metavar="-- CMD...", nargs=-1, type=click.UNPROCESSED)
@click.option("--agent", metavar="UID", shell_complete=complete_agents, help="Run it on this agent: uid or name.")
@click.option("--where", multiple=True, metavar="K=V", help="Run it on an agent with this property; several times.")
@click.option("--require", multiple=True, metavar="CONDITION", help="Run it on an agent whose property fulfils this: "
              "'gpus>=2', 'zone in a,b', cuda=true; several times.")  # fmt: skip
@click.option("--resource", "amounts", multiple=True, metavar="NAME=AMOUNT", help="Take so much of the agent's "
              "resources: cpus=4, memory=8G, a licence; several times. With --agent: have its runner, such as Slurm, "
              "reserve it.")  # fmt: skip
@click.option("--strategy", type=click.Choice(("spread", "pack")), help="Take the emptiest agent, or the fullest one "
              "with space [default: the least loaded].")  # fmt: skip
@click.option("--slurm", multiple=True, metavar="FIELD=VALUE", help="For an agent whose jobs run on a Slurm cluster: "
              "partition=gpu, time=8:00:00, qos=high …; several times.")  # fmt: skip
@click.option("--queue", type=DURATION, metavar="DURATION", help="Wait for so long until an agent has space for it.")
@click.option("--name", metavar="NAME", help="The job's name [default: the program's].")
@click.option("--upload", "uploads", multiple=True, metavar="PATH", type=click.Path(exists=True),
              help="Upload a file, or the contents of a directory, before the start; several times.")  # fmt: skip
@click.option("--download", "downloads", multiple=True, metavar="MASK", help="Fetch files that match from the sandbox "
              "at the end, such as results or '*.csv'; several times.")  # fmt: skip
@click.option("--into", metavar="DIR", default=".", type=click.Path(file_okay=False), help="Where --download puts them "
              "[default: here].")  # fmt: skip
@click.option(
    "-e", "--env", multiple=True, metavar="K=V", help="Set a variable; K alone passes yours on; several times."
)
@click.option("--cwd", metavar="DIR", help="Working directory in the sandbox.")
@click.option("--port", metavar="MODE", help="The job has a server: notify, assign, detect, unix, or the number of the "
              "port on which it listens (docs/jobs.md).")  # fmt: skip
@click.option("--preset", type=click.Choice(_PRESETS), help="The kind of its server; the start waits for it.")
@click.option("--template", metavar="NAME", help="Start it by this template of its agent (jobs.pool), instead of CMD, "
              "--env, --cwd, --port and --preset.")  # fmt: skip
@click.option("--timeout", type=DURATION, metavar="DURATION", help="End it after so long; the exit code is 124 then.")
@click.option("--grace", type=DURATION, metavar="DURATION", help="Time between SIGTERM and SIGKILL when it is stopped "
              "[default: 10s].")  # fmt: skip
@click.option("--open", "browse", is_flag=True, help="Open its page in your browser once it is ready.")
@click.option("--keep", is_flag=True, help="Do not remove it at the end.")
@click.option("-d", "--detach", is_flag=True, help="Print its uid and leave it running; it is kept.")
@click.option("--wait", type=DURATION, metavar="DURATION", help="With --detach: wait no longer than this for an agent "
              "and the start, and leave the job queued or starting; 0s for not at all.")  # fmt: skip
def command(
    args: tuple[str, ...],
    agent: str | None,
    where: tuple[str, ...],
    require: tuple[str, ...],
    amounts: tuple[str, ...],
    strategy: str | None,
    slurm: tuple[str, ...],
    queue: float | None,
    name: str | None,
    uploads: tuple[str, ...],
    downloads: tuple[str, ...],
    into: str,
    env: tuple[str, ...],
    cwd: str | None,
    port: str | None,
    preset: str | None,
    template: str | None,
    timeout: float | None,
    grace: float | None,
    browse: bool,
    keep: bool,
    detach: bool,
    wait: float | None,
) -> None:
    """Run a job: its stdout and stderr byte for byte, then its exit code, then it is removed.

    Ctrl-C (or SIGTERM) stops the job, a second one kills it, a third one leaves at once. The job also ends when the
    terminal is closed or nobody reads the output any more. A lost connection, or a restart of the router, loses and
    repeats nothing.

    The exit code is the job's; 128 and the signal's number if a signal ended it; 124 after --timeout; 125 if the router
    or this command failed.

    \b
    Examples:
      prouter run -- python3 -c 'print(6 * 7)'
      prouter run --where gpu=a100 --upload . --download results -- python3 train.py
      prouter run -d --name lab --preset jupyterlab --open -- jupyter lab
      prouter run -d --template lab --open
      prouter run -d --queue 12h --wait 0s --resource gpus=1 -- ./train
      prouter run --agent cluster --resource cpus=8 --slurm partition=gpu --slurm time=2:00:00 -- ./solve
    """
    if agent and (where or require or strategy):
        raise click.UsageError("--agent excludes --where, --require and --strategy, which choose one")
    if detach and downloads:
        raise click.UsageError("--download waits for the end, so it excludes --detach: use 'prouter cp' later")
    if wait is not None and (not detach or browse):
        raise click.UsageError("--wait is for --detach without --open: other runs need the job's start, or its end")
    _check_template(template, args, (*env, *slurm, cwd, port, preset))
    expose, number = exposed(port, preset)
    if browse and expose is None and template is None:
        raise click.UsageError("--open needs a server: add --port, --preset or --template")
    known = variables(env)
    promised = {} if number is None else {"PORT": str(number), "HOST": "127.0.0.1"}
    wanted = properties(where)
    try:
        with connect(LONG) as router:
            plan = Plan(
                args=args,
                name=name or template or os.path.basename(args[0]),
                template=template,
                agent=find_agent(router, agent).agent.uid if agent else None,
                where=where_of(router, wanted),
                require=conditions(require) or None,
                resources=None if agent else resources(amounts) or None,
                strategy=strategy,
                queue=queue,
                uploads=uploads,
                downloads=downloads,
                into=into,
                env={**promised, **known},
                cwd=cwd,
                expose=expose,
                port=number,
                options={**({"resources": resources(amounts)} if agent and amounts else {}), **slurm_options(slurm)},
                limits=None if timeout is None else {"timeout": timeout},
                grace=grace,
                wait=wait,
                keep=keep or detach,
                detach=detach,
                browse=browse,
            )
            status = _carry_out(router, plan)
    except RouterError as error:
        raise Failure(describe(error), Exit.NOT_THE_JOB) from error
    except Failure as error:
        told = error.exit_code if error.exit_code in (Exit.USAGE, *range(124, 256)) else Exit.NOT_THE_JOB
        raise Failure(error.message, told) from error
    raise SystemExit(status)


def _check_template(template: str | None, args: Sequence[str], said: Sequence[str | None]) -> None:
    """Refuse a run without a command, and what a template says already.

    Raises:
        click.UsageError: it is one of these.
    """
    if template is None and not args:
        raise click.UsageError("give a command after '--', or --template")
    if template is not None and (args or any(one is not None for one in said)):
        raise click.UsageError("--template says how the job is started: leave out CMD, --env, --cwd, --port, --preset")


def _carry_out(router: Router, plan: Plan) -> int:
    status, info = Running(router, plan).run()
    if plan.detach and info is not None:
        emit_jobs([info], kind="name" if output_kind() == "table" else None)
    return status
