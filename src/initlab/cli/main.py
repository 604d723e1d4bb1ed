"""The `initlab` console script: thin verbs, nothing heavy imported before one is chosen."""

import re
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from initlab.errors import UserError, working_directory
from initlab.system.escape import print
from initlab.system.streams import output_was_lost, print_stderr, tolerate_lost_output

app = typer.Typer(
    name="initlab",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def print_version(asked: bool) -> None:
    """Print the version and leave."""
    if asked:
        from initlab import __version__

        print(f"initlab {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def initlab(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    """What does this initialization do to this network? Predicted, measured at step 0, and shown by training."""
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command(
    short_help="Train one network, or a grid of them.",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
def train(context: typer.Context) -> None:
    """Train one network, or with -m a grid of them: the same as `python train.py`."""
    from initlab.cli.train import run_train as door

    raise typer.Exit(door(context.args))


Paths = Annotated[list[str], typer.Argument(help="Directories of runs or sweeps.", metavar="DIRECTORY...")]


@app.command(short_help="Write one page that shows what runs did.")
def report(
    paths: Paths,
    out: Annotated[str | None, typer.Option("--out", "-o", help="The file; else report.html in the directory.")] = None,
) -> None:
    """Write one self-contained page about runs or sweeps, and print the table it rests on."""
    from initlab.cli.report import run_report

    run_report(paths, out)


BEST = "Mark the best of those that differ in the first key only; with --across init, the best scheme of each line."


@app.command(short_help="Tabulate runs: mean and std over seeds.")
def table(
    paths: Paths,
    by: Annotated[str, typer.Option(help="Keys to group by, with commas; else all that differ but the seed.")] = "",
    metric: Annotated[str, typer.Option(help="Metrics, with commas; else the test accuracy.")] = "",
    across: Annotated[str | None, typer.Option(help="A key whose values become columns.")] = None,
    form: Annotated[str, typer.Option("--format", help="text, csv, markdown or latex.")] = "text",
    best: Annotated[bool, typer.Option("--best", help=BEST)] = False,
    best_rate: Annotated[bool, typer.Option("--best-rate", help="Only runs at their cell's best rate.")] = False,
) -> None:
    """Tabulate runs: mean ± standard deviation over seeds, grouped as you like."""
    from initlab.cli.report import print_run_table

    print_run_table(paths, by.split(","), metric.split(","), across, form, best, best_rate)


@app.command(short_help="What does theory say of a network, a grid or a plane of (σ_w, σ_b)?")
def predict(
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE...", help="As for train.")] = None,
    chart: Annotated[bool, typer.Option("--map", help="Draw the phases of act= over (σ_w, σ_b).")] = False,
    sigma_w: Annotated[str | None, typer.Option(metavar="LOW..HIGH", help="Of the map; else 0.5..4.")] = None,
    sigma_b: Annotated[str | None, typer.Option(metavar="LOW..HIGH", help="Of the map; else 0..1.")] = None,
    points: Annotated[int | None, typer.Option(help="Of the map, along each axis; else 200.")] = None,
    out: Annotated[str | None, typer.Option("--out", "-o", metavar="FILE", help="The page; a CSV beside it.")] = None,
    every: Annotated[bool, typer.Option("--all", help="A line for every layer, or every cell.")] = False,
    as_json: AsJson = False,
    csv: Annotated[str | None, typer.Option(metavar="FILE", help="Write the rows there.")] = None,
    multirun: Annotated[bool, typer.Option("--multirun", "-m", hidden=True)] = False,
) -> None:
    """Say what theory expects of a network before a weight is drawn; with lists, rank a grid without training it.

    initlab predict act=tanh init=he_normal depth=50 width=128

    initlab predict act=tanh,relu,gelu init=glorot_normal,he_normal,critical depth=10,30,100

    initlab predict --map act=tanh --sigma-b 0..1 --sigma-w 0.5..4
    """
    from initlab.cli.predict import run_predict

    run_predict(
        overrides or (),
        chart=chart,
        sigma_w=sigma_w,
        sigma_b=sigma_b,
        points=points,
        out=out,
        every=every,
        as_json=as_json,
        csv=csv,
    )


Globs = Annotated[list[str] | None, typer.Option(metavar="GLOB", help="May be given several times.")]


@app.command(short_help="What is wrong with this model at initialization?")
def diagnose(
    target: Annotated[str, typer.Argument(help="package.module:callable that gives a torch.nn.Module.")],
    shapes: Annotated[list[str], typer.Option("--input", "-i", metavar="SHAPE", help="1,3,224,224, or module:batch.")],
    batch: Annotated[int | None, typer.Option(help="How many inputs; for a first axis of 1 chosen by itself.")] = None,
    tokens: Annotated[int | None, typer.Option(metavar="VOCABULARY", help="Inputs are whole numbers below it.")] = None,
    targets: Annotated[str | None, typer.Option(metavar="MODULE:NAME", help="Labels; else random ones.")] = None,
    classes: Annotated[int | None, typer.Option(help="The output holds logits of so many classes.")] = None,
    arg: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Argument for the callable.")] = None,
    seed: Annotated[int, typer.Option(help="Of weights, inputs and labels.")] = 0,
    evaluate: Annotated[bool, typer.Option("--eval", help="Look at it in evaluation mode.")] = False,
    jacobian: Annotated[bool | None, typer.Option(help="Jacobians: always (a minute), never; else if cheap.")] = None,
    every: Annotated[bool, typer.Option("--all", help="A line for every layer.")] = False,
    as_json: AsJson = False,
    csv: Annotated[str | None, typer.Option(metavar="FILE", help="Write the measured rows there.")] = None,
) -> None:
    """Run a model once, forward and backward, and say where signals die and which layers are at fault."""
    given = locals()
    from initlab.cli.diagnose import run_diagnose

    run_diagnose(given.pop("target"), given.pop("shapes"), keywords=given.pop("arg") or (), **given)


@app.command(short_help="Is this module initialized as promised?")
def audit(
    target: Annotated[str, typer.Argument(help="package.module:callable, or a .safetensors or state_dict file.")],
    init: Annotated[str | None, typer.Option(help="The scheme that is promised.")] = None,
    rules: Annotated[str | None, typer.Option(metavar="FILE", help="YAML: {glob: scheme}; the first wins.")] = None,
    mode: Annotated[str | None, typer.Option(help="fan_in, fan_out, fan_avg or fan_geo_avg.")] = None,
    key: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Another init.KEY.")] = None,
    act: Annotated[str, typer.Option(help="The activation that the scheme's gain looks at.")] = "linear",
    gain: Annotated[str, typer.Option(help="paper, forward, backward, critical or a number.")] = "paper",
    sigma_b: Annotated[float | None, typer.Option(help="Std of the biases.")] = None,
    role: Annotated[list[str] | None, typer.Option(metavar="ROLE=GLOB", help="first=stem, readout=head.")] = None,
    kind: Annotated[list[str] | None, typer.Option(metavar="GLOB=KIND", help="What an unknown one is.")] = None,
    only: Globs = None,
    skip: Globs = None,
    forget_bias: Annotated[float | None, typer.Option(help="Promised bias of forget gates.")] = None,
    chrono: Annotated[float | None, typer.Option(help="Longest time lag of chrono initialization.")] = None,
    module: Annotated[str | None, typer.Option(help="package.module:callable that a file's values are of.")] = None,
    arg: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Argument for the callable.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="What is left alone is broken.")] = False,
    every: Annotated[bool, typer.Option("--all", help="A line for every parameter.")] = False,
    as_json: AsJson = False,
    junit: Annotated[str | None, typer.Option(metavar="FILE", help="Write JUnit XML for a CI job.")] = None,
) -> None:
    """Test each parameter against its promise: exit code 1 when one is broken or none was checked, 2 for bad input."""
    given = locals()
    from initlab.cli.audit import run_audit

    raise typer.Exit(run_audit(**given))


@app.command(short_help="Do layers move as much at every width?")
def coordinates(
    target: Annotated[str | None, typer.Argument(help="package.module:function of a width; else an mlp.")] = None,
    init: Annotated[str, typer.Option(help="A scheme; mup brings its rates.")] = "mup",
    widths: Annotated[str, typer.Option(help="With commas; the least is mup's base.")] = "64,128,256,512,1024",
    shape: Annotated[str | None, typer.Option("--input", "-i", metavar="SHAPE", help="Of the batch: 64,32.")] = None,
    act: Annotated[str, typer.Option(help="The activation.")] = "relu",
    optimizer: Annotated[str, typer.Option(help="sgd or adam.")] = "adam",
    lr: Annotated[float, typer.Option(help="The rate at the base width.")] = 0.001,
    steps: Annotated[int, typer.Option(help="Updates before the last look.")] = 3,
    seeds: Annotated[int, typer.Option(help="Networks of each width.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Check coordinates: exit code 1 where a rate tuned at one width does not suit another, 2 for bad input."""
    given = locals()
    from initlab.cli.coordinates import run_coordinates

    raise typer.Exit(run_coordinates(given.pop("target"), **given))


@app.command(short_help="Run a paper's experiment and judge its claim.")
def reproduce(
    chosen: Annotated[list[str] | None, typer.Argument(help="Experiments, or all; without one: the list.")] = None,
    full: Annotated[bool, typer.Option("--full/--quick", help="More seeds and depths, or the quick version.")] = False,
    root: Annotated[str, typer.Option(help="Where runs, reports and verdicts go.")] = "outputs/reproduce",
    as_json: AsJson = False,
) -> None:
    """List the experiments, or run some and say whether their papers' claims hold here."""
    from initlab.cli.reproduce import run_reproduce

    run_reproduce(chosen or (), "full" if full else "quick", root, as_json)


@app.command(short_help="List the initialization schemes.")
def schemes(as_json: AsJson = False) -> None:
    """List the initialization schemes: name, law, what they need, year, reference."""
    from initlab.cli.catalogue import print_schemes

    print_schemes(as_json)


@app.command(short_help="List the activation functions.")
def activations(as_json: AsJson = False) -> None:
    """List the activation functions: name, formula, saturation interval, kinks, reference."""
    from initlab.cli.catalogue import print_activations

    print_activations(as_json)


TORCH_FREE_VERBS = ("table", "report", "--help", "--version")


def main() -> None:
    """Run the console script; what the user got wrong is one sentence and exit code 2."""
    with tolerate_lost_output():
        try:
            if sys.argv[1:2] and sys.argv[1] not in TORCH_FREE_VERBS:
                working_directory()  # torch's libraries end the program where there is no current directory
            code = app(standalone_mode=False)
        except UserError as error:
            exit_with_usage_error(str(error))
        except FileNotFoundError:
            try:
                working_directory()
            except UserError as gone:
                exit_with_usage_error(str(gone))
            raise
        except Exception as error:
            # What typer refuses; the class has another home in every other release of it.
            if not hasattr(error, "format_message"):
                raise
            exit_with_usage_error(usage_error_text(error.format_message().rstrip("."), sys.argv[1:]))
        if output_was_lost() and sys.argv[1:2] != ["train"]:
            code = code or 1  # what was asked for was the output
        raise SystemExit(code if isinstance(code, int) else 0)


def usage_error_text(said: str, arguments: Sequence[str]) -> str:
    """Return what typer refuses as a sentence, with what would work."""
    verb = arguments[0] if arguments else ""
    if (option := re.match(r"No such option: (--?[\w-]+)", said)) and verb == "predict":
        from initlab.config.typing_slips import refuse_dashed_key

        place = next((k for k, word in enumerate(arguments) if word.partition("=")[0] == option[1]), 0)
        following = arguments[place + 1] if place + 1 < len(arguments) else ""
        try:
            refuse_dashed_key(arguments[place], following)
        except UserError as error:
            return str(error)
    stop = "" if said.endswith("?") else "."
    if said.startswith("No such command") and verb in VERB_HINTS:
        return f"{said}{stop} Write `initlab {VERB_HINTS[verb]}`."
    there = verb and not verb.startswith("-") and not said.startswith("No such command")
    return f"{said}{stop} {f'`initlab {verb} --help` explains it' if there else '`initlab --help` lists the verbs'}."


VERB_HINTS = {"sweep": "train -m …", "run": "train …", "multirun": "train -m …", "list": "schemes"}


def exit_with_usage_error(sentence: str) -> NoReturn:
    """Say what the user got wrong, and go."""
    print_stderr(f"initlab: {sentence}")
    raise SystemExit(2)
