from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from spatialscope_dist.store.packed_rows import pack_rows


def test_pack_rows__rows_in_any_order_are_those_of_the_table(tmp_path):
    random = np.random.default_rng(0)
    table = sp.random(50, 23, density=0.2, random_state=1, format="csr")
    table.data = random.integers(1, 90, table.nnz)
    table.data[table.indptr[7] : table.indptr[8]] = 0
    table.eliminate_zeros()
    packed = pack_rows((table[low : low + 8] for low in range(0, 50, 8)), tmp_path / "rows", n_genes=23)
    assert packed.shape == (50, 23)
    for rows in (np.arange(50), random.integers(0, 50, 200), np.array([7]), np.array([], np.int64)):
        assert np.array_equal(packed[rows].toarray(), table[rows].toarray())
    packed.close()
