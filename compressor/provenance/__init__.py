"""Where the channels of every value of a graph come from, found by running the graph on index tensors.

    facets.py       labels of elements, and values that hold them
    labels.py       which labels are one, and which must stay
    meeting.py      what becomes of channels that meet, are summed over, or are mixed
    closure.py      what can go leaves a box
    tracer.py       the walk, and the table of rules
    elementwise.py, layout.py, lookups.py, products.py, statistics.py
                    the rules, by family of operators

An operator without a rule freezes what goes through it: what is not understood is never cut.
"""

from compressor.provenance import elementwise, layout, lookups, products, statistics
from compressor.provenance.tracer import Tracer

__all__ = ["Tracer", "elementwise", "layout", "lookups", "products", "statistics"]
