"""The classes, by index, and the values that stand for them in MS-CMRSeg's files."""

CLASSES = ("background", "Myo", "LV", "RV")
STRUCTURES = CLASSES[1:]
LABEL_VALUES = (0, 200, 500, 600)
