#!/usr/bin/env python3
"""Makes meta.mat in the layout of ImageNet's devkit: python3 make.py (SciPy; run with 1.17.1).

Twelve leaves and three parents, in an order that is not that of the IDs; wnids of which the sorted
position is not the ID; numbers of several types; texts with letters beyond ASCII.
"""
import os

import numpy as np
import scipy.io

HERE = os.path.dirname(os.path.abspath(__file__))
FIELDS = ["ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height", "num_train_images"]


def row(number, wnid, words, children=()):
    kind = (np.uint8, np.int16, np.float64, np.uint16, np.float32)[number % 5]
    gloss = "what " + words + " is"
    return (kind(number), wnid, words, gloss, kind(len(children)), np.array(children, np.uint16), np.uint8(1 if children else 0), np.uint16(1300))


rows = [row(13, "n00000100", "animal", (1, 2, 3)), row(15, "n00000300", "thing", (4, 5))]
words = ["kit fox, Vulpes macrotis", "crane", "crane", "caf\u00e9", "tench, Tinca tinca", "a", "bb", "ccc", "dddd", "eeeee", "ffffff", "x"]
for number in (5, 1, 12, 2, 3, 4, 11, 10, 9, 8, 7, 6):
    rows.append(row(number, f"n{20000000 - 1000 * number:08d}", words[number - 1]))
rows.append(row(14, "n00000200", "bird", (2, 3)))
synsets = np.array([[r] for r in rows], dtype=[(f, object) for f in FIELDS])
scipy.io.savemat(os.path.join(HERE, "meta.mat"), {"other": np.arange(3), "synsets": synsets}, do_compression=True)
scipy.io.savemat(os.path.join(HERE, "plain.mat"), {"synsets": synsets[:3]}, do_compression=False)
