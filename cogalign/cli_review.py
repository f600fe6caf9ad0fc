"""`cogalign review`: masks, reports and verdicts to experts and back."""

from __future__ import annotations

from pathlib import Path

from cogalign.cli_data import Parser


def review(arguments: list[str]) -> int:
    """`cogalign review export CASE_SET OUT ...` and `cogalign review import CASE_SET FILE... --out DIR`."""
    parser = Parser(prog="cogalign review", description="Masks, reports and verdicts to experts and back.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    export = commands.add_parser("export", help="write a case set for CVAT, Label Studio and other tools")
    export.add_argument("case_set", type=Path, metavar="CASE_SET", help="folder of the case set")
    export.add_argument("out", type=Path, metavar="OUT", help="coco: the JSON file; label-studio: a new folder")
    export.add_argument("--format", default="coco", help="coco (default) or label-studio")
    export.add_argument("--images", default="link", help="label-studio: link to the images (default) or inline them")
    export.add_argument("--reports", action="store_true", help="label-studio: reports and keywords, to be corrected")
    back = commands.add_parser("import", help="a new case set with refined masks and without what was rejected")
    back.add_argument("case_set", type=Path, metavar="CASE_SET", help="folder of the case set; it stays as it is")
    back.add_argument("files", type=Path, metavar="FILE", nargs="+",
                      help="COCO files, Label Studio exports, verdicts.json of a gallery")  # fmt: skip
    back.add_argument("--out", type=Path, metavar="DIR", required=True, help="the new folder")
    back.add_argument("--resolve", choices=("refuse", "latest", "first", "majority"), default="refuse",
                      help="where annotators differ: list it and stop (default), or take one by this rule")  # fmt: skip
    found = parser.parse_args(arguments)
    from cogalign.data.review.commands import export_review, import_review

    if found.command == "export":
        print(export_review(found.case_set, found.out, found.format, found.images, found.reports))
        return 0
    done = import_review(found.files, found.case_set, found.out, found.resolve)
    print(f"{found.out} is written: " + ", ".join(f"{number} {what}" for what, number in done.items()))
    return 0
