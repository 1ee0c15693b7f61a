from batchyard.metrics.bounded_names import OTHERS, BoundedNames


def test_who_came_first_keeps_a_label_for_good():
    names = BoundedNames(2)
    assert [names.label(name) for name in "abcadb"] == ["a", "b", OTHERS, "a", OTHERS, "b"]
