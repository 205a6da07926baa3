from hypothesis import given
from hypothesis import strategies as st
from sheaf_operator.api import crd, names

resource_names = st.from_regex(r"[a-z]([-a-z0-9]{0,46}[a-z0-9])?", fullmatch=True)


@given(resource_names, st.dictionaries(st.text(max_size=5), st.text(max_size=5)))
def test_every_derived_name_is_a_valid_label_value(name: str, spec: dict[str, str]) -> None:
    assert len(name) <= crd.MAX_NAME
    # KServe puts `isvc.NAME-predictor` into a label.
    for derived in (
        names.runtime_name(name, names.revision_hash(spec)),
        "isvc." + names.predictor_deployment(name),
    ):
        assert len(derived) <= 63
        assert derived[-1].isalnum()


@given(st.dictionaries(st.text(max_size=5), st.integers()))
def test_the_hash_depends_on_content_and_not_on_order(spec: dict[str, int]) -> None:
    assert names.revision_hash(dict(reversed(spec.items()))) == names.revision_hash(spec)
    assert names.revision_hash({**spec, "another key": 1}) != names.revision_hash(spec)
