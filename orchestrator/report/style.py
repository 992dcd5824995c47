"""Colours of all pictures: those of Okabe and Ito (2008), told apart by colour-blind readers; shapes differ as well."""

COLOURS = {
    "blue": "#0072B2",
    "vermillion": "#D55E00",
    "green": "#009E73",
    "orange": "#E69F00",
    "purple": "#CC79A7",
    "sky": "#56B4E9",
    "yellow": "#F0E442",
}
GREY = "#808080"  # reads on white and on black
