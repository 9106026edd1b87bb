"""Pure values of the SPIFFE standards: IDs, selectors, SVIDs, bundles. No I/O."""
