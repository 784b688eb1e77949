"""Prints what the windows of a session bus show, a line each: the labels that are seen, as assistive technologies read them."""

import gi

gi.require_version("Atspi", "2.0")
from gi.repository import Atspi  # noqa: E402


def walk(node):
    if node is None or not node.get_state_set().contains(Atspi.StateType.SHOWING):
        return
    if node.get_role() == Atspi.Role.LABEL:
        print(node.get_name())
    for index in range(node.get_child_count()):
        walk(node.get_child_at_index(index))


desktop = Atspi.get_desktop(0)
for number in range(desktop.get_child_count()):
    program = desktop.get_child_at_index(number)
    for at in range(program.get_child_count()):
        walk(program.get_child_at_index(at))
