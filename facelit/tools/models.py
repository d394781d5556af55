"""`facelit models`: lists the weights that facelit knows how to import."""

from __future__ import annotations

from json import dumps


def models(json: bool = False) -> int:
    """Lists the published face networks that `facelit import` knows: where to get them, and under what terms.

    Nothing is downloaded: get a file from its authors' page, and read their licence. The figures are the authors' own.

    Args:
        json: Print the list as JSON.
    """
    from facelit.importing.kinds import published

    rows = published()
    if json:
        print(dumps([row._asdict() for row in rows], indent=2))
        return 0
    for row in rows:
        print(f"{row.name}: {row.architecture}")
        print(f"  from        {row.home}")
        print(f"  licence     {row.licence}")
        print(f"  trained on  {row.trained_on}")
        print(f"  LFW         {row.lfw}")
        print(f"  import      {row.command}")
        print()
    print(
        "Other weights for these architectures can be imported too, and so can torchvision's and timm's classifiers that"
    )
    print("return an embedding. `facelit import --help` shows the options for a network's preprocessing.")
    return 0


models.examples = ["", "--json"]  # type: ignore[attr-defined]  # read by facelit.cli.parser
