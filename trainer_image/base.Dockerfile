# The base of the trainer image where no registry has one: an archive that mmdebstrap made. Called by cluster/images.py.
FROM scratch
ADD base.tar /
