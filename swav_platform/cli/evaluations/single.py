"""swav evaluate knn, linear, probes, svm, semi, finetune, clusters, retrieval: one evaluation on one data set."""

from __future__ import annotations

from typing import Any

import click

from swav_platform.cli import console
from swav_platform.cli.evaluations.options import data_options, evaluate, evaluated, model_options


def _run(name: str, options: dict[str, Any], common: dict[str, Any]) -> None:
    from swav_platform.evaluation.plan import checked

    data = {key: common[key] for key in ("train", "test", "label", "train_size", "test_size")}
    given = {key: value for key, value in options.items() if value is not None and value != ()}
    tree = {"data": data, "evaluations": {name: given}, "seeds": common["seeds"], "random_init": common["random_init"]}
    with evaluated(common["model"], common["out"], common["to"], common["device"]) as subject:
        [result], _ = evaluate(subject, checked(tree, f"swav evaluate {name}"))
    if name == "knn":
        result |= {"k": result["options"]["k"][0], "temperature": result["options"]["temperature"][0]}
        result |= {"bank": result["train"], "query": result["test"]}
    answer(result, common["as_json"])


def answer(result: dict[str, Any], as_json: bool) -> None:
    """The JSON object, or the table."""
    if as_json:
        console.answer(result, True)
        return
    from swav_platform.evaluation.tables.markdown import table

    click.echo(table([result]))


@click.command(
    epilog=console.examples(
        "swav evaluate knn mine --train 'train-*.tar' --test 'test-*.tar'",
        "swav evaluate knn mine --train train.tar --test test.tar --k 1 --k 20 --label json:class",
    )
)
@model_options
@data_options
@click.option(
    "--k", multiple=True, default=(20,), show_default=True, type=click.IntRange(1), help="Neighbours that vote; repeat it."
)
@click.option(
    "--temperature",
    multiple=True,
    default=(0.1,),
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="A neighbour of cosine similarity s has the weight exp(s / temperature); repeat it.",
)
@console.json_option
def knn(k: tuple[int, ...], temperature: tuple[float, ...], **common: Any) -> None:
    """Weighted nearest neighbours of frozen features: top-1."""
    _run("knn", {"k": k, "temperature": temperature}, common)


@click.command(
    epilog=console.examples("swav evaluate linear mine --train 'train-*.tar' --test 'test-*.tar' --solver sgd --seeds 3")
)
@model_options
@data_options
@click.option(
    "--solver",
    type=click.Choice(["lbfgs", "sgd-frozen", "sgd"]),
    help="lbfgs (default) or sgd-frozen on one feature pass; sgd on augmented crops, as published.",
)
@click.option("--cost", "costs", multiple=True, type=float, help="Inverse regularisation of lbfgs to choose from; repeat it.")
@click.option("--epochs", type=click.IntRange(1), help="Epochs of SGD (default: 100).")
@click.option("--lr", type=float, help="Learning rate of SGD for batches of 256 (default: 0.3).")
@console.json_option
def linear(solver: str | None, costs: tuple[float, ...], epochs: int | None, lr: float | None, **common: Any) -> None:
    """A linear classifier on the frozen encoder: top-1."""
    _run("linear", {"solver": solver, "costs": costs, "epochs": epochs, "lr": lr}, common)


@click.command(epilog=console.examples("swav evaluate probes mine --train 'train-*.tar' --test 'test-*.tar' --size 5000"))
@model_options
@data_options
@click.option("--size", type=click.IntRange(1), help="Images of each side whose maps are used (default: 10,000).")
@click.option("--epochs", type=click.IntRange(1), help="Epochs (default: 90).")
@click.option("--lr", type=float, help="Learning rate for batches of 256 (default: 0.01).")
@console.json_option
def probes(size: int | None, epochs: int | None, lr: float | None, **common: Any) -> None:
    """Linear classifiers on the maps of stem and stages, feature1 to feature5: top-1 of each."""
    _run("probes", {"size": size, "epochs": epochs, "lr": lr}, common)


@click.command(epilog=console.examples("swav evaluate svm mine --train trainval.tar --test test.tar --labels voc07.tsv"))
@model_options
@data_options
@click.option("--labels", metavar="FILE", help="Several labels per image: lines KEY<tab>LABEL,LABEL.")
@click.option("--cost", "costs", multiple=True, type=float, help="Cost to choose from by 3 folds; repeat it.")
@click.option("--shots", multiple=True, type=click.IntRange(1), help="Positive images per class of low-shot; repeat it.")
@click.option("--draws", type=click.IntRange(1), help="Draws of each low-shot (default: 5).")
@console.json_option
def svm(labels: str | None, costs: tuple[float, ...], shots: tuple[int, ...], draws: int | None, **common: Any) -> None:
    """Support vector machines, one per class: mAP, also from few images."""
    _run("svm", {"labels": labels, "costs": costs, "shots": shots, "draws": draws}, common)


@click.command(epilog=console.examples("swav evaluate clusters mine --train 'train-*.tar' --test 'test-*.tar' --kmeans 100"))
@model_options
@data_options
@click.option("--kmeans", type=click.IntRange(2), help="Clusters of k-means (default: the number of classes of the test images).")
@console.json_option
def clusters(kmeans: int | None, **common: Any) -> None:
    """Agreement of prototypes and of k-means with the labels of the test images: NMI, ARI, purity."""
    _run("clusters", {"kmeans": kmeans}, common)


@click.command(epilog=console.examples("swav evaluate retrieval mine --train 'train-*.tar' --test 'test-*.tar'"))
@model_options
@data_options
@click.option("--at", multiple=True, type=click.IntRange(1), help="k of recall@k; repeat it.")
@click.option("--queries", type=click.IntRange(1), help="Most test images that search (default: 2,000).")
@console.json_option
def retrieval(at: tuple[int, ...], queries: int | None, **common: Any) -> None:
    """Search the train images with test images: mAP and recall@k."""
    _run("retrieval", {"at": at, "queries": queries}, common)


@click.command(
    epilog=console.examples("swav evaluate semi mine --train 'train-*.tar' --test 'test-*.tar' --list 0.01=1percent.txt")
)
@model_options
@data_options
@click.option(
    "--fraction", "fractions", multiple=True, type=click.FloatRange(0, 1, min_open=True), help="Share of the labels; repeat it."
)
@click.option(
    "--list", "lists", multiple=True, metavar="FRACTION=FILE", help="Keys with labels for a fraction, instead of a draw."
)
@click.option("--epochs", type=click.IntRange(1), help="Epochs (default: 20).")
@click.option("--trunk-lr", type=float, help="Rate of the encoder for batches of 256 (default: published).")
@click.option("--head-lr", type=float, help="Rate of the classifier for batches of 256 (default: published).")
@console.json_option
def semi(
    fractions: tuple[float, ...],
    lists: tuple[str, ...],
    epochs: int | None,
    trunk_lr: float | None,
    head_lr: float | None,
    **common: Any,
) -> None:
    """Fine-tune with 1 % and 10 % of the labels: top-1 and top-5."""
    named = dict(entry.partition("=")[::2] for entry in lists)
    options = {"fractions": fractions, "lists": named, "epochs": epochs, "trunk_lr": trunk_lr, "head_lr": head_lr}
    _run("semi", options, common)


@click.command(epilog=console.examples("swav evaluate finetune mine --train 'train-*.tar' --test 'test-*.tar' --epochs 10"))
@model_options
@data_options
@click.option("--epochs", type=click.IntRange(1), help="Epochs (default: 30).")
@click.option("--trunk-lr", type=float, help="Rate of the encoder for batches of 256 (default: 0.01).")
@click.option("--head-lr", type=float, help="Rate of the classifier for batches of 256 (default: 0.1).")
@console.json_option
def finetune(epochs: int | None, trunk_lr: float | None, head_lr: float | None, **common: Any) -> None:
    """Train encoder and classifier with all labels: top-1 and top-5."""
    _run("finetune", {"epochs": epochs, "trunk_lr": trunk_lr, "head_lr": head_lr}, common)


COMMANDS = (knn, linear, probes, svm, clusters, retrieval, semi, finetune)
