"""The compiler "auto": the fastest of several, measured for each distinct piece and box."""

from __future__ import annotations

from intarsia.interfaces import Capabilities, CompilerSpec, Option

intarsia_api_version = (1, 0)


def intarsia_compilers() -> list[CompilerSpec]:
    """Bring the compiler "auto".

    It compiles in the process that asks, one piece at a time: a worker would time next to other workers.
    """
    return [
        CompilerSpec(
            name="auto",
            version="1",
            factory="intarsia_auto.choosing:AutoCompiler",
            options={
                "candidates": Option((), (list, tuple), "compilers to choose from, in order of "
                                     "preference; empty: those that the platform lists"),
                "rounds": Option(20, int, "timed calls of each candidate, for each piece and box"),
                "seconds": Option(2.0, (int, float), "when timing of a piece stops, if it is not done"),
                "margin": Option(0.02, (int, float), "part by which a candidate must be faster than "
                                 "one named before it"),
            },
            capabilities=Capabilities(
                dynamic_shapes=True, mutation=True, custom_ops=True, workers=False
            ),
            uses_others=True,
        )
    ]  # fmt: skip
