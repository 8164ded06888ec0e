"""The sentences that the demo embeds when it is given none."""

from __future__ import annotations

__all__ = ["QUERIES", "SENTENCES"]

SENTENCES = (
    "Fresh bread.",
    "She kneads the dough and leaves it to rise overnight.",
    "A pinch of salt brings out the sweetness of ripe tomatoes.",
    "The soup simmered for three hours.",
    "The telescope showed rings around the distant planet.",
    "Astronomers measured how fast the galaxy moves away from us.",
    "The probe has left the solar system and still sends data.",
    "A total eclipse turned the afternoon dark for four minutes.",
    "The violinist tuned her instrument before the concert began.",
    "On Fridays he plays the piano in a small jazz club near the harbour, where nobody talks until "
    "the last chord of the evening has faded away.",
    "The choir rehearsed the same passage until it was perfect.",
    "The goalkeeper saved a penalty in the last minute of the match.",
    "Thousands of runners crossed the bridge at the start of the marathon.",
    "The chess champion lost her title after a long endgame.",
    "Heavy rain flooded the road between the two villages.",
    "A warm wind from the south melted the snow in a single night.",
    "The storm tore the roof off the old barn.",
    "The compiler fuses several small loops into one.",
    "Most of the time was spent waiting for memory rather than computing.",
    "A missing comma in the settings file stopped the whole server.",
    "The carpenter fitted each piece of walnut into the oak panel.",
    "Thin slices of wood of many colours, each cut along its grain and glued beside the next, form "
    "the picture of a ship under full sail.",
    "The cat fell asleep on the warm lid of the piano.",
    "Two foxes crossed the garden just before sunrise.",
)

QUERIES = (
    "Inlay work made from different kinds of timber.",
    "How do I make my program run faster?",
    "Bad weather caused damage.",
)
