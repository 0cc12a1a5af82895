"""Published weights to model packages. One file per kind of names; `importing.import_weights` does the rest."""
