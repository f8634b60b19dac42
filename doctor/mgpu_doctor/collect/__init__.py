"""Looks at the machine, or reads what was seen on another: the only part that touches NVML, ports and /proc."""
