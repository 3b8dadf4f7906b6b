"""DPO Studio: label two answers, train DPO rounds on the votes, swap the better model in."""

__version__ = "0.1.0"
