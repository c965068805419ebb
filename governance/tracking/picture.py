"""What a journal looks like in MLflow, all of it: the folds of training, votes, books and releases side by side."""

from __future__ import annotations

from commons.records import Record
from governance.tracking.books import Books
from governance.tracking.items import Item
from governance.tracking.releases import Releases
from governance.tracking.training import Training
from governance.tracking.votes import Votes


class Picture:
    """Pure: the same records give the same items, whoever folds them and however often."""

    def __init__(self) -> None:
        training = Training()
        self.releases = Releases()
        self._folds = (training, Votes(), Books(training.ledger), self.releases)

    def apply(self, index: int, record: Record) -> list[Item]:
        return [item for fold in self._folds for item in fold.apply(index, record)]
