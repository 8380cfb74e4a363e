"""What goes wrong in a kernel, and where."""


class PtxError(RuntimeError):
    """A kernel did what the PTX ISA does not define, or what is not implemented here.

    Attributes:
        line: Line of the PTX text, from 1 on; 0 where there is none.
        text: The instruction.
        cta: Index of the thread block in the grid, or ``None``.
        warp: Index of the warp in its block, or ``None``.
        lane: Index of the thread in its warp, or ``None``.
    """

    def __init__(
        self,
        message: str,
        line: int = 0,
        text: str = "",
        cta: tuple[int, int, int] | None = None,
        warp: int | None = None,
        lane: int | None = None,
    ) -> None:
        """Put the place in front of the message."""
        thread = "" if cta is None else f", block {cta}, warp {warp}, lane {lane}"
        place = f"PTX line {line}{thread}: {text}\n" if line else ""
        super().__init__(place + message)
        self.line, self.text, self.cta, self.warp, self.lane = line, text, cta, warp, lane
