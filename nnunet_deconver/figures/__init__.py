"""Figures for papers: of cases, of comparisons, of what DTC and NeRD have learned."""
