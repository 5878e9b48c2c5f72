"""MEASURES: what is known of each measure before anything is computed. Standard library only.

Names of tags, the tab's glossary and the table in `docs/logged.md` follow from it. The numbers are computed in
`cam_callbacks.audit.measuring`, and those of the probes' heatmaps in `cam_callbacks.explain.trust.measure_trust`.
"""

from __future__ import annotations

from cam_callbacks.audit.measure_spec import OF_THE_PROBABILITY, MeasureSpec, of_exchange

_LARGEST_CLASS = "share of the largest class"
_XIAO = "Xiao et al. 2020, arXiv 2006.09994"
_REINHARD = "Reinhard et al. 2001, doi 10.1109/38.946629, for the colors; the gap is ours"
_CHATTOPADHAY = "after Chattopadhay et al. 2018, arXiv 1710.11063"

MEASURES: dict[str, MeasureSpec] = {
    spec.name: spec
    for spec in (
        MeasureSpec(
            "accuracy",
            title="Accuracy",
            definition="Share of right answers. It cannot show a bias that the validation images share.",
            chance=_LARGEST_CLASS,
            source="",
            per_class="table",
        ),
        MeasureSpec(
            "iou",
            title="Intersection over union",
            definition="Of a segmentation: IoU of where the class is seen and where it is, of the largest object of "
            "each image.",
            chance="that of seeing the class everywhere",
            source="",
            per_class="table",
            task="segmentation",
        ),
        MeasureSpec(
            "recall",
            title="Objects found",
            definition="Of a detection: share of objects of which a box of their class has an IoU of 0.5 and a score "
            "of 0.5 at least.",
            chance="that of a box around the whole image",
            source="",
            per_class="table",
            task="detection",
        ),
        MeasureSpec(
            "skill",
            title="Skill",
            definition="Of a regression: 1 minus the error, divided by the mean error of always answering the median.",
            chance="0",
            source="",
            per_class="table",
            task="regression",
        ),
        MeasureSpec(
            "worst_group_accuracy",
            title="Accuracy of the worst group",
            definition="The lowest accuracy among the groups of images.",
            chance="0, where each group is of one class",
            source="Sagawa et al. 2020, arXiv 1911.08731",
        ),
        MeasureSpec(
            "bg_gap",
            title="Background gap",
            definition="Accuracy against a background of the same class minus accuracy against one of another class. "
            "The main number: 0.3 means that 30 of 100 answers depend on the background. Of a segmentation in IoU, of "
            "a detection in objects found. Of a regression: the slope of the answer on the number of the image whose "
            "background it is.",
            chance="0",
            source=_XIAO,
            masks="needed",
            per_class="logged",
            has_interval=True,
        ),
        MeasureSpec(
            "bg_gap_probability",
            title="Background gap in probability",
            definition=OF_THE_PROBABILITY,
            chance="0",
            masks="needed",
            has_interval=True,
        ),
        MeasureSpec(
            "bg_gap_larger_masks",
            title="Background gap with larger masks",
            definition="The background gap of every second image with its estimated mask larger by 3% of the side. "
            "Much smaller than bg_gap: it hangs on the edges of the masks.",
            chance="0",
            masks="estimated",
            has_interval=True,
        ),
        MeasureSpec(
            "bg_gap_smaller_masks",
            title="Background gap with smaller masks",
            definition="The same of the other images with smaller masks.",
            chance="0",
            masks="estimated",
            has_interval=True,
        ),
        MeasureSpec(
            "outline_gap",
            title="Outline gap",
            definition="The background gap if the image keeps its own background, and only the place of the other "
            "image's object is inpainted: a placebo. Above 0: outlines are read, and bg_gap is too high by as much.",
            chance="0",
            masks="needed",
            per_class="table",
            has_interval=True,
        ),
        MeasureSpec(
            "outline_gap_probability",
            title="Outline gap in probability",
            definition=OF_THE_PROBABILITY,
            chance="0",
            masks="needed",
            has_interval=True,
        ),
        MeasureSpec(
            "recolor_gap",
            title="Background color gap",
            definition="The background gap if only mean and spread of the background's color are moved. As large as "
            "bg_gap: the color is used; near 0: content or texture.",
            chance="0",
            source=_REINHARD,
            masks="needed",
            per_class="logged",
            has_interval=True,
        ),
        MeasureSpec(
            "recolor_gap_probability",
            title="Background color gap in probability",
            definition=OF_THE_PROBABILITY,
            chance="0",
            masks="needed",
            has_interval=True,
        ),
        MeasureSpec(
            "ring_gap",
            title="Ring gap",
            definition="The background gap if the outer ring (1/8 of the side) is swapped. Only where there are no "
            "masks; it matters above 0.15.",
            chance="0",
            masks="excluded",
            per_class="logged",
            has_interval=True,
        ),
        MeasureSpec(
            "ring_gap_probability",
            title="Ring gap in probability",
            definition=OF_THE_PROBABILITY,
            chance="0",
            masks="excluded",
            has_interval=True,
        ),
        *of_exchange(
            "position",
            "The gap if the object is moved, before its own inpainted background, to where that of an image of the "
            "same class lies, or of another class.",
            placebo="The same if as much beside the object is inpainted as the move leaves empty: a placebo.",
        ),
        *of_exchange(
            "size",
            "The gap if the object is resized, before its own inpainted background, to the area of that of an image of "
            "the same class, or of another class.",
            placebo="The same if as much around the object is inpainted as resizing changes: a placebo.",
        ),
        *of_exchange(
            "detail",
            "The gap if the power of the background at each spatial frequency becomes that of the background of an "
            "image of the same class, or of another class: sharpness, blur, noise. Without masks it is that of the "
            "whole image, a weak test.",
            masks="optional",
        ),
        *of_exchange(
            "compression",
            "The gap if the whole image becomes as strongly compressed, in the blocks of JPEG, as an image of the same "
            "class, or of another class. 0 where no traces of compression are left, as after resizing.",
            masks="unused",
        ),
        *of_exchange(
            "mirror",
            "The gap if the object is mirrored, before its own inpainted background, where it faces the other way than "
            "that of an image of the same class, or of another class.",
            placebo="The same if as much beside the object is inpainted as the mirrored one would cover: a placebo.",
        ),
        MeasureSpec(
            "collage_cost",
            title="Cost of a swap",
            definition="Right answers lost by a background of the same class: by the swap itself. Above 0.2 the "
            "swap is not a fair test.",
            chance="0",
            masks="needed",
            has_interval=True,
        ),
        MeasureSpec(
            "blur_loss",
            title="Right answers lost by a blurred background",
            definition="Right answers lost if the image's own background is blurred. It needs no other image: a second "
            "test, which sees the use of content and texture.",
            chance="0",
            masks="needed",
            has_interval=True,
        ),
        MeasureSpec(
            "leak",
            title="Leak onto the background",
            definition="Of a segmentation: how much more of the rest of the image is seen as the class of the object "
            "if the background is of an image without it.",
            chance="0",
            masks="needed",
            has_interval=True,
            task="segmentation",
        ),
        MeasureSpec(
            "background_only",
            title="Accuracy on the background alone",
            definition="Accuracy with the object inpainted. High: the background alone is enough.",
            chance=_LARGEST_CLASS,
            source=f"after {_XIAO}",
            masks="needed",
            per_class="table of few",
        ),
        MeasureSpec(
            "object_only",
            title="Accuracy on the object alone",
            definition="Accuracy with the background filled with the mean color of all images. High: the object alone "
            "is enough.",
            chance=_LARGEST_CLASS,
            source=f"after {_XIAO}",
            masks="needed",
            per_class="table of few",
        ),
        MeasureSpec(
            "color_sensitivity_roll",
            title="Sensitivity to swapped color channels",
            definition="Right answers lost by rolled color channels minus those lost by a little brightness. Clean "
            "models use color too: no alarm.",
            chance="0",
        ),
        MeasureSpec(
            "color_sensitivity_gray",
            title="Sensitivity to missing color",
            definition="Right answers lost by gray images minus those lost by a little brightness.",
            chance="0",
        ),
        MeasureSpec(
            "data_color_auc",
            title="Classes told apart by color",
            definition="How well the mean color outside the object tells the classes apart (AUC); without masks, that "
            "of the outer ring. Of the data, not of the model. From 0.85: ask how the data was collected.",
            chance="0.5",
            source="Airola et al. 2011, doi 10.1016/j.csda.2010.11.018",
            masks="optional",
        ),
        MeasureSpec(
            "border_share",
            title="Heat in the outer ring",
            definition="Heat in the outer ring / all heat.",
            chance="area of the ring",
        ),
        MeasureSpec(
            "delete_hot",
            title="Accuracy without the hottest half",
            definition="Accuracy with the hottest half of the heatmap filled. It stays high: there is evidence "
            "elsewhere too.",
            source="ours; one step of the deletion of Petsiuk et al. 2018, arXiv 1806.07421",
        ),
        MeasureSpec(
            "heat_on_object",
            title="Heat on the object",
            definition="Heat on the object's mask / all heat. Above chance: heat follows the object. Evidence, not "
            "proof: a biased model may pass.",
            chance="the same on the masks of other images of the class",
            source="Wang et al. 2020, arXiv 1910.01279, section 4.3; the chance level is ours",
            masks="needed",
            per_class="logged",
        ),
        MeasureSpec(
            "heat_over_area",
            title="Heat on the object minus its area",
            definition="heat_on_object minus the object's share of the area. Below 0: away from the object.",
            chance="0",
            masks="needed",
        ),
        MeasureSpec(
            "rank_accuracy",
            title="Hottest positions on the object",
            definition="Of as many of the hottest positions as the mask has, the share on the mask.",
            chance="area of the mask",
            source="Arras et al. 2022, arXiv 2003.07258",
            masks="needed",
        ),
        MeasureSpec(
            "pointing",
            title="Hottest position on the object",
            definition="How often the hottest position lies on the mask.",
            chance="area of the mask",
            source="Zhang et al. 2018, arXiv 1608.00507, without their tolerance of 15 pixels",
            masks="needed",
        ),
        MeasureSpec(
            "mask_agreement",
            title="Share of images whose three estimated foregrounds agree",
            definition="How often three estimates of the foreground by GrabCut, from three rectangles, agree. Other "
            "images are left out. Low: give masks, or Audit(masks=...).",
            masks="estimated",
        ),
        MeasureSpec(
            "average_drop",
            title="Drop of the probability with the hottest half kept",
            definition="How much of the explained class's probability is lost if only the hottest half of the image is "
            "kept. Low: the map holds the evidence.",
            source=_CHATTOPADHAY,
        ),
        MeasureSpec(
            "increase_in_confidence",
            title="Images more probable with the hottest half kept",
            definition="Share of images whose probability rises if only the hottest half of the image is kept.",
            source=_CHATTOPADHAY,
        ),
        MeasureSpec(
            "mean_activation_correlation",
            title="Correlation with the mean activation",
            definition="Correlation of the heatmap with the plain mean of the layer's channels. Near 1: it says little "
            "of the class.",
        ),
    )
}
"""By name. The last three are of the probes' heatmaps, the others of the audit's images; those of `position`,
`size` and `detail` are there if they are asked for."""

SECOND_TESTS = ("recolor_gap", "blur_loss")
"""The measures that paste nothing, and can agree with a background gap."""

OTHER_MASKS = ("bg_gap_larger_masks", "bg_gap_smaller_masks")
"""The background gap with other masks than those that were estimated."""

MARGIN_GAP = "margin_gap"
"""The name of the exchange with other masks: larger ones in every second image, smaller ones in the others."""
