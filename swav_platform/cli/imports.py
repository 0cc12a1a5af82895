"""swav import."""

from __future__ import annotations

from pathlib import Path

import click

from swav_platform.cli import console


@click.command(
    epilog=console.examples(
        "swav import swav_800ep_pretrain.pth.tar",
        "swav import https://example.org/resnet50.pth --to packages/resnet50 --licence BSD-3-Clause",
    )
)
@click.argument("source", metavar="FILE|URL")
@click.option("--to", metavar="DIR", help="Folder of the model package (default: NAME-package).")
@click.option("--name", help="Name of the model (default: the file's).")
@click.option(
    "--licence", metavar="TEXT", help="Licence of the weights, for the model card (default: the publisher's, if known)."
)
@click.option("--sha256", "digest", metavar="HEX", help="Refuse a file with another digest.")
@click.option("--stem-stride", type=click.IntRange(1, 2), help="Stride of a 3x3 first convolution, which weights do not tell.")
@click.option(
    "--input-size", default=224, show_default=True, type=click.IntRange(8), help="Side of the encoder's input in pixels."
)
@console.json_option
def import_command(
    source: str,
    to: str | None,
    name: str | None,
    licence: str | None,
    digest: str | None,
    stem_stride: int | None,
    input_size: int,
    as_json: bool,
) -> None:
    """Make a model package of published weights: SwAV, DeepCluster-v2, SeLa-v2, VISSL, MSF, DINO ResNet or torchvision.

    All weights of the encoder have to be in the file. Nothing in the file is executed. Every command takes the package.
    """
    from swav_platform.models.imports.importing import import_weights

    result = import_weights(
        source,
        Path(to).expanduser() if to else None,
        name=name,
        licence=licence,
        digest=digest,
        stem_stride=stem_stride,
        input_size=input_size,
    )
    console.answer(result, as_json)
