"""How much memory a launch needs, of each card and of the host, and where one process puts a model's layers.

Nothing here is measured. A need is a range whose low end is certain under what is known of the command, and whose high
end is enough under the assumptions that are named beside it; what has no bound is listed, and the range is then open.
"""
