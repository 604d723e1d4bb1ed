"""Numbers about numbers, without torch: intervals, paired comparisons, histograms."""
