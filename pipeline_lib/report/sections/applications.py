"""Section on the applications, one part for each."""

from __future__ import annotations

from collections.abc import Callable

from pipeline_lib.report.blocks import Block, Section
from pipeline_lib.report.collect import APPLICATIONS, Run
from pipeline_lib.report.pictures import PictureBook
from pipeline_lib.report.sections.ablation import ablation_blocks
from pipeline_lib.report.sections.codes import codes_blocks
from pipeline_lib.report.sections.retrieval import retrieval_blocks
from pipeline_lib.report.sections.spurious import spurious_blocks
from pipeline_lib.report.sections.tokens import heatmap_blocks, segmentation_blocks

TITLES = {
    "ablation": "Mean ablation",
    "retrieval": "Retrieval by one property",
    "heatmaps": "Token heat maps",
    "segmentation": "Zero-shot segmentation",
    "spurious": "Spurious cues",
    "codes": "Concept codes",
}
_ABOUT = {
    "ablation": "How the accuracy falls when components are replaced by their mean over images.",
    "retrieval": "Images found by one property alone, with the components that carry it.",
    "heatmaps": "Where in the image a text or a class gets its direct contribution from.",
    "segmentation": "The heat maps, thresholded and held against the object’s mask.",
    "spurious": "Components that carry a cue which does not hold are replaced by their means.",
    "codes": "Single images, read as short lists of texts.",
}


def applications_section(run: Run, book: PictureBook) -> Section:
    """All applications; one that is switched off says so."""
    blocks: dict[str, Callable[[], list[Block]]] = {
        "ablation": lambda: ablation_blocks(run),
        "retrieval": lambda: retrieval_blocks(run, book),
        "heatmaps": lambda: heatmap_blocks(run, book),
        "segmentation": lambda: segmentation_blocks(run, book),
        "spurious": lambda: spurious_blocks(run),
        "codes": lambda: codes_blocks(run, book),
    }
    children = [
        Section(
            key=name,
            title=TITLES[name],
            about=_ABOUT[name],
            blocks=[] if name in run.not_run else blocks[name](),
            not_run=run.not_run.get(name, ""),
        )
        for name in APPLICATIONS
    ]
    return Section(
        key="applications",
        title="Applications",
        about="What the contributions are good for, each beside a baseline and a control.",
        children=children,
    )
