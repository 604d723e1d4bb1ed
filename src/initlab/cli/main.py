"""The `initlab` console script: one thin function for each verb; nothing heavy is imported before one is chosen."""

import sys
from typing import Annotated, Any

import typer

from initlab.cli.usage_errors import exit_with_usage_error, usage_error_text
from initlab.errors import UserError, working_directory
from initlab.system.escape import print
from initlab.system.streams import output_was_lost, tolerate_lost_output

app = typer.Typer(name="initlab", add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


def option(metavar: str | None, text: str, *names: str) -> Any:
    """Return a typer option with its metavar (None: of a flag) and its help text."""
    return typer.Option(*names, metavar=metavar, help=text)


def argument(metavar: str, text: str) -> Any:
    """Return a typer argument with its metavar and its help text."""
    return typer.Argument(metavar=metavar, help=text)


Text = str | None
Texts = list[str] | None
AsJson = Annotated[bool, option(None, "Print JSON instead of a table.", "--json")]
Csv = Annotated[Text, option("FILE", "Also write the rows to a CSV file.")]
Paths = Annotated[list[str], argument("DIRECTORY", "Directories of runs or sweeps.")]
Keywords = Annotated[Texts, option("KEY=VALUE", "Argument of the callable; may be repeated.", "--arg")]


def print_version(wanted: bool) -> None:
    """Print the version and exit, if it is wanted.

    Raises:
        Exit: it is.
    """
    if wanted:
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
    "train",
    short_help="Train one network, or a grid of them.",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
def train_command(context: typer.Context) -> int:
    """Train one network, or with -m a grid of them: the same as `python train.py`."""
    from initlab.cli.train import run_train

    return run_train(context.args)


@app.command("report", short_help="Write a page about runs: curves, layers, comparisons.")
def report_command(
    paths: Paths,
    out: Annotated[Text, option("FILE", "The page; default: report.html in the directory.", "--out", "-o")] = None,
) -> None:
    """Write one self-contained page about runs or sweeps, and print its table.

    initlab report outputs/sweeps/depths
    """
    from initlab.cli.report import run_report

    run_report(paths, out)


@app.command("table", short_help="Tabulate runs: mean and std over seeds.")
def table_command(
    paths: Paths,
    by: Annotated[str, option("KEYS", "Keys to group by, joined by commas; default: all that differ but seed.")] = "",
    metrics: Annotated[str, option("NAMES", "Joined by commas; default: the test accuracy.", "--metric")] = "",
    across: Annotated[Text, option("KEY", "A key whose values become columns.")] = None,
    form: Annotated[str, option("NAME", "text, csv, markdown or latex.", "--format")] = "text",
    best: Annotated[bool, option(None, "Mark the best value of the first key, or of --across.", "--best")] = False,
    best_rate: Annotated[bool, option(None, "Only runs at their cell's best learning rate.", "--best-rate")] = False,
) -> None:
    """Tabulate runs: mean ± standard deviation over seeds.

    initlab table outputs/sweeps/depths --by act,depth --across init --best
    """
    from initlab.cli.report import print_run_table

    print_run_table(paths, by.split(","), metrics.split(","), across, form, best, best_rate)


@app.command("predict", short_help="Predict a network's signals by theory, or rank a grid.")
def predict_command(
    overrides: Annotated[Texts, argument("KEY=VALUE", "As for train.")] = None,
    chart: Annotated[bool, option(None, "Write a map of the phases of act= over (σ_w, σ_b).", "--map")] = False,
    sigma_w: Annotated[Text, option("LOW..HIGH", "σ_w of the map; default: 0.5..4.")] = None,
    sigma_b: Annotated[Text, option("LOW..HIGH", "σ_b of the map; default: 0..1.")] = None,
    points: Annotated[int | None, option("COUNT", "Points of the map along each axis; default: 200.")] = None,
    out: Annotated[Text, option("FILE", "The page of the map; its CSV is written beside it.", "--out", "-o")] = None,
    every: Annotated[bool, option(None, "Print every layer, or every cell of the grid.", "--all")] = False,
    as_json: AsJson = False,
    csv: Csv = None,
    multirun: Annotated[bool, typer.Option("--multirun", "-m", hidden=True)] = False,
) -> None:
    """Predict by theory, before a weight is drawn: a network layer by layer; with lists, a ranked grid.

    initlab predict act=tanh init=he_normal depth=50 width=128

    initlab predict act=tanh,relu,gelu init=glorot_normal,he_normal,critical depth=10,30,100

    initlab predict --map act=tanh --sigma-b 0..1 --sigma-w 0.5..4
    """
    arguments = locals()
    from initlab.cli.predict import run_predict

    del arguments["multirun"]  # accepted, because `train` needs it for lists
    run_predict(**arguments)


@app.command("diagnose", short_help="Find what is wrong with a model at initialization.")
def diagnose_command(
    target: Annotated[str, argument("MODULE:NAME", "A torch.nn.Module, or a callable that returns one.")],
    shapes: Annotated[
        list[str],
        option("SHAPE", "Such as 1,3,224,224, once for each input; or MODULE:NAME of a batch.", "--input", "-i"),
    ],
    batch: Annotated[
        int | None, option("COUNT", "Number of inputs; default: up to 128 where SHAPE begins with 1.")
    ] = None,
    tokens: Annotated[int | None, option("VOCABULARY", "Draw whole numbers below this instead of N(0, 1).")] = None,
    targets: Annotated[Text, option("MODULE:NAME", "Labels, or a function of the inputs; default: random.")] = None,
    classes: Annotated[int | None, option("COUNT", "The output holds logits of this many classes.")] = None,
    arg: Keywords = None,
    seed: Annotated[int, option("SEED", "Of weights, inputs and labels.")] = 0,
    evaluate: Annotated[bool, option(None, "Put the model into evaluation mode.", "--eval")] = False,
    jacobian: Annotated[bool | None, option(None, "Measure Jacobians (up to a minute); default: where cheap.")] = None,
    every: Annotated[bool, option(None, "Print every layer.", "--all")] = False,
    as_json: AsJson = False,
    csv: Csv = None,
) -> None:
    """Run a model once, forward and backward, and print where its signals die and which layers are at fault.

    initlab diagnose torchvision.models:resnet18 --input 1,3,224,224
    """
    arguments = locals()
    from initlab.cli.diagnose import run_diagnose

    run_diagnose(**arguments)


@app.command("audit", short_help="Check that a module is initialized as promised.")
def audit_command(
    target: Annotated[str, argument("TARGET", "MODULE:NAME to import, or a .safetensors or state_dict file.")],
    init: Annotated[Text, option("SCHEME", "The promised scheme.")] = None,
    rules: Annotated[Text, option("FILE", "Promises as YAML {glob: scheme}; the first match wins.")] = None,
    mode: Annotated[Text, option("MODE", "fan_in, fan_out, fan_avg or fan_geo_avg.")] = None,
    key: Annotated[Texts, option("KEY=VALUE", "Another key init.KEY; may be repeated.", "--set")] = None,
    act: Annotated[str, option("NAME", "The activation that the scheme's gain is for.")] = "linear",
    gain: Annotated[str, option("GAIN", "paper, forward, backward, critical or a number.")] = "paper",
    sigma_b: Annotated[float | None, option("STD", "Promised std of the biases.")] = None,
    role: Annotated[Texts, option("ROLE=GLOB", "Role of parameters, such as first=stem or readout=head.")] = None,
    kind: Annotated[Texts, option("GLOB=KIND", "Kind of parameters that are not recognized, such as dense.")] = None,
    only: Annotated[Texts, option("GLOB", "Check these parameters only; may be repeated.")] = None,
    skip: Annotated[Texts, option("GLOB", "Do not check these parameters; may be repeated.")] = None,
    forget_bias: Annotated[float | None, option("BIAS", "Promised bias of the forget gates.")] = None,
    chrono: Annotated[float | None, option("LAG", "Longest time lag of a promised chrono initialization.")] = None,
    module: Annotated[Text, option("MODULE:NAME", "The module that a file's values belong to.")] = None,
    arg: Keywords = None,
    strict: Annotated[bool, option(None, "Count parameters that no promise covers as broken.", "--strict")] = False,
    every: Annotated[bool, option(None, "Print every parameter, not only broken ones.", "--all")] = False,
    as_json: AsJson = False,
    junit: Annotated[Text, option("FILE", "Also write JUnit XML, for a CI job.")] = None,
) -> int:
    """Test each parameter against its promise.

    Exit code: 0 where all are as promised, 1 where one is not or none was checked, 2 for bad input.

    initlab audit mymodel:net --init he_normal
    """
    arguments = locals()
    from initlab.cli.audit import run_audit

    return run_audit(**arguments)


@app.command("coordinates", short_help="Check that layers move equally at every width (µP).")
def coordinates_command(
    target: Annotated[Text, argument("MODULE:NAME", "A function of a width; default: an mlp.")] = None,
    init: Annotated[str, option("SCHEME", "The scheme; mup sets learning rates, too.")] = "mup",
    widths: Annotated[str, option("COUNTS", "Joined by commas; the least is mup's base.")] = "64,128,256,512,1024",
    shape: Annotated[Text, option("SHAPE", "Shape of the batch, such as 64,32.", "--input", "-i")] = None,
    act: Annotated[str, option("NAME", "The activation.")] = "relu",
    optimizer: Annotated[str, option("NAME", "sgd or adam.")] = "adam",
    lr: Annotated[float, option("RATE", "The learning rate at the base width.")] = 0.001,
    steps: Annotated[int, option("COUNT", "Updates before layers are compared.")] = 3,
    seeds: Annotated[int, option("COUNT", "Networks of each width.")] = 1,
    as_json: AsJson = False,
) -> int:
    """Check that a few updates change every layer's output equally at every width, as under µP.

    Exit code: 0 where they do, 1 where a rate tuned at one width does not suit another, 2 for bad input.
    """
    arguments = locals()
    from initlab.cli.coordinates import run_coordinates

    return run_coordinates(**arguments)


@app.command("reproduce", short_help="Run a paper's experiment and judge its claim.")
def reproduce_command(
    chosen: Annotated[Texts, argument("EXPERIMENT", "Names, or all; without one: print the list.")] = None,
    full: Annotated[bool, option(None, "More seeds and depths, or the quick version.", "--full/--quick")] = False,
    root: Annotated[str, option("DIRECTORY", "Directory of runs, reports and verdicts.")] = "outputs/reproduce",
    as_json: AsJson = False,
) -> None:
    """List the experiments, or run some and judge whether their papers' claims hold here.

    initlab reproduce he_2015
    """
    from initlab.cli.reproduce import run_reproduce

    run_reproduce(chosen or (), "full" if full else "quick", root, as_json)


@app.command("schemes", short_help="List the initialization schemes.")
def schemes_command(as_json: AsJson = False) -> None:
    """List the initialization schemes: name, law, variance, what they need, year, reference."""
    from initlab.cli.catalogue import print_schemes

    print_schemes(as_json)


@app.command("activations", short_help="List the activation functions.")
def activations_command(as_json: AsJson = False) -> None:
    """List the activation functions: name, formula, saturation interval, kinks, reference."""
    from initlab.cli.catalogue import print_activations

    print_activations(as_json)


TORCH_FREE_VERBS = ("table", "report", "--help", "--version")


def main() -> None:
    """Run the console script; what the user got wrong is one sentence and exit code 2.

    Raises:
        SystemExit: with the exit code.
    """
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
            except UserError as removed:
                exit_with_usage_error(str(removed))
            raise
        except Exception as error:
            # typer's usage errors: their class stands in another module in every other release.
            if not hasattr(error, "format_message"):
                raise
            exit_with_usage_error(usage_error_text(error.format_message().rstrip("."), sys.argv[1:]))
        if output_was_lost() and sys.argv[1:2] != ["train"]:
            code = code or 1  # the output was what was asked for
        raise SystemExit(code if isinstance(code, int) else 0)
