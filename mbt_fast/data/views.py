"""Where in a clip the model looks."""

from fractions import Fraction


def view_starts(
    duration: Fraction, windows: dict[str, Fraction], n_views: int
) -> dict[str, list[Fraction]]:
    """Starts of ``n_views`` windows per modality, evenly spaced over the clip.

    The first window starts with the clip and the last one ends with it; a single one lies in the
    middle. Modalities whose windows differ in length stand at the same proportion of their own
    range, as in the paper's synchronous sampling. A clip no longer than any window has one view.

    Args:
        duration: Length of the clip in seconds.
        windows: Length of the window of each modality in seconds.
        n_views: Number of views of a long clip, at least 1.

    Returns:
        For each modality the starts in seconds from the start of the clip, equally many.

    Raises:
        ValueError: ``n_views`` is below 1.
    """
    if n_views < 1:
        raise ValueError(f"n_views must be at least 1, got {n_views}")
    ranges = {modality: max(duration - window, Fraction(0)) for modality, window in windows.items()}
    if not any(ranges.values()):
        return {modality: [Fraction(0)] for modality in windows}
    if n_views == 1:
        return {modality: [reach / 2] for modality, reach in ranges.items()}
    return {
        modality: [reach * view / (n_views - 1) for view in range(n_views)]
        for modality, reach in ranges.items()
    }
