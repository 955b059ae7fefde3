# The Debian package, made by scripts/package.sh: what `cmake --install --prefix /usr` installs, as modelstore_VERSION_ARCH.deb.
set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_NAME modelstore)
set(CPACK_PACKAGE_CONTACT "the modelstore maintainers <root@localhost>")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "compression-aware store and mount of model checkpoints")
set(CPACK_PACKAGE_DESCRIPTION "modelstore keeps model checkpoints in a fraction of their size and shows them as ordinary,
read-only files: identical tensors are stored once, a finetune as the difference from its base.")
# The files know the prefix that they will have: the unit names the program.
set(CPACK_SET_DESTDIR ON)
set(CPACK_INSTALL_PREFIX /usr)
set(CPACK_STRIP_FILES ON)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SECTION utils)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
# BLIS has variants of one name; this is the one that is built with: it starts no threads of its own.
set(CPACK_DEBIAN_PACKAGE_DEPENDS "passwd, libblis4-serial")
# Ordinary users mount by its fusermount3; python3 runs modelstore-moments.
set(CPACK_DEBIAN_PACKAGE_RECOMMENDS fuse3)
set(CPACK_DEBIAN_PACKAGE_SUGGESTS python3)
set(CPACK_DEBIAN_PACKAGE_CONTROL_STRICT_PERMISSION ON)
set(CPACK_DEBIAN_PACKAGE_CONTROL_EXTRA ${CMAKE_SOURCE_DIR}/scripts/debian/postinst ${CMAKE_SOURCE_DIR}/scripts/debian/prerm
    ${CMAKE_SOURCE_DIR}/scripts/debian/postrm)
include(CPack)
