cdef extern from "layout.h":
    ctypedef unsigned char CK_BYTE
    ctypedef unsigned char CK_CHAR
    ctypedef unsigned char CK_UTF8CHAR
    ctypedef unsigned char CK_BBOOL
    ctypedef unsigned long CK_ULONG
    ctypedef unsigned long CK_FLAGS
    ctypedef unsigned long CK_RV
    ctypedef unsigned long CK_SLOT_ID
    ctypedef unsigned long CK_SESSION_HANDLE
    ctypedef unsigned long CK_USER_TYPE

    const CK_ULONG CK_UNAVAILABLE_INFORMATION
    const CK_BBOOL CK_TRUE
    const CK_BBOOL CK_FALSE

    const CK_FLAGS CKF_OS_LOCKING_OK
    const CK_FLAGS CKF_RW_SESSION
    const CK_FLAGS CKF_SERIAL_SESSION
    const CK_FLAGS CKF_PROTECTED_AUTHENTICATION_PATH
    const CK_FLAGS CKF_TOKEN_INITIALIZED
    const CK_FLAGS CKF_USER_PIN_INITIALIZED
    const CK_FLAGS CKF_USER_PIN_FINAL_TRY
    const CK_FLAGS CKF_USER_PIN_LOCKED
    const CK_FLAGS CKF_SO_PIN_FINAL_TRY
    const CK_FLAGS CKF_SO_PIN_LOCKED
    const CK_USER_TYPE CKU_SO
    const CK_USER_TYPE CKU_USER
    const CK_ULONG CKS_RW_SO_FUNCTIONS
    const CK_ULONG CKS_RW_USER_FUNCTIONS

    const CK_RV CKR_OK
    const CK_RV CKR_SLOT_ID_INVALID
    const CK_RV CKR_FUNCTION_FAILED
    const CK_RV CKR_DEVICE_ERROR
    const CK_RV CKR_TOKEN_NOT_PRESENT
    const CK_RV CKR_TOKEN_NOT_RECOGNIZED
    const CK_RV CKR_PIN_INCORRECT
    const CK_RV CKR_PIN_EXPIRED
    const CK_RV CKR_SESSION_HANDLE_INVALID
    const CK_RV CKR_SESSION_EXISTS
    const CK_RV CKR_USER_ALREADY_LOGGED_IN
    const CK_RV CKR_USER_NOT_LOGGED_IN
    const CK_RV CKR_USER_ANOTHER_ALREADY_LOGGED_IN
    const CK_RV CKR_FUNCTION_NOT_SUPPORTED
    const CK_RV CKR_BUFFER_TOO_SMALL
    const CK_RV CKR_CRYPTOKI_NOT_INITIALIZED
    const CK_RV CKR_CRYPTOKI_ALREADY_INITIALIZED
    const CK_RV CKR_VENDOR_DEFINED

    ctypedef struct CK_VERSION:
        CK_BYTE major
        CK_BYTE minor

    ctypedef struct CK_INFO:
        CK_VERSION cryptokiVersion
        CK_UTF8CHAR manufacturerID[32]
        CK_FLAGS flags
        CK_UTF8CHAR libraryDescription[32]
        CK_VERSION libraryVersion

    ctypedef struct CK_SLOT_INFO:
        CK_UTF8CHAR slotDescription[64]
        CK_UTF8CHAR manufacturerID[32]
        CK_FLAGS flags
        CK_VERSION hardwareVersion
        CK_VERSION firmwareVersion

    ctypedef struct CK_TOKEN_INFO:
        CK_UTF8CHAR label[32]
        CK_UTF8CHAR manufacturerID[32]
        CK_UTF8CHAR model[16]
        CK_CHAR serialNumber[16]
        CK_FLAGS flags
        CK_ULONG ulMaxSessionCount
        CK_ULONG ulSessionCount
        CK_ULONG ulMaxRwSessionCount
        CK_ULONG ulRwSessionCount
        CK_ULONG ulMaxPinLen
        CK_ULONG ulMinPinLen
        CK_ULONG ulTotalPublicMemory
        CK_ULONG ulFreePublicMemory
        CK_ULONG ulTotalPrivateMemory
        CK_ULONG ulFreePrivateMemory
        CK_VERSION hardwareVersion
        CK_VERSION firmwareVersion
        CK_CHAR utcTime[16]

    ctypedef struct CK_SESSION_INFO:
        CK_SLOT_ID slotID
        CK_ULONG state
        CK_FLAGS flags

    ctypedef struct CK_C_INITIALIZE_ARGS:
        CK_FLAGS flags

    ctypedef struct CK_UNASSIGNED_SLOT_INFO:
        CK_SLOT_ID slotID
        CK_UTF8CHAR label[32]

    # Only the functions that are called; layout.h checks where they stand in the list.
    ctypedef struct CK_FUNCTION_LIST:
        CK_RV (*C_Initialize)(void *pInitArgs) noexcept nogil
        CK_RV (*C_Finalize)(void *pReserved) noexcept nogil
        CK_RV (*C_GetInfo)(CK_INFO *pInfo) noexcept nogil
        CK_RV (*C_GetSlotList)(CK_BBOOL tokenPresent, CK_SLOT_ID *pSlotList,
                               CK_ULONG *pulCount) noexcept nogil
        CK_RV (*C_GetSlotInfo)(CK_SLOT_ID slotID, CK_SLOT_INFO *pInfo) noexcept nogil
        CK_RV (*C_GetTokenInfo)(CK_SLOT_ID slotID, CK_TOKEN_INFO *pInfo) noexcept nogil
        CK_RV (*C_InitToken)(CK_SLOT_ID slotID, CK_UTF8CHAR *pPin, CK_ULONG ulPinLen,
                             CK_UTF8CHAR *pLabel) noexcept nogil
        CK_RV (*C_InitPIN)(CK_SESSION_HANDLE hSession, CK_UTF8CHAR *pPin,
                           CK_ULONG ulPinLen) noexcept nogil
        CK_RV (*C_SetPIN)(CK_SESSION_HANDLE hSession, CK_UTF8CHAR *pOldPin, CK_ULONG ulOldLen,
                          CK_UTF8CHAR *pNewPin, CK_ULONG ulNewLen) noexcept nogil
        CK_RV (*C_OpenSession)(CK_SLOT_ID slotID, CK_FLAGS flags, void *pApplication,
                               void *Notify, CK_SESSION_HANDLE *phSession) noexcept nogil
        CK_RV (*C_CloseSession)(CK_SESSION_HANDLE hSession) noexcept nogil
        CK_RV (*C_GetSessionInfo)(CK_SESSION_HANDLE hSession,
                                  CK_SESSION_INFO *pInfo) noexcept nogil
        CK_RV (*C_Login)(CK_SESSION_HANDLE hSession, CK_USER_TYPE userType,
                         CK_UTF8CHAR *pPin, CK_ULONG ulPinLen) noexcept nogil
        CK_RV (*C_Logout)(CK_SESSION_HANDLE hSession) noexcept nogil


ctypedef CK_RV (*CK_C_GetFunctionList_t)(CK_FUNCTION_LIST **ppFunctionList) noexcept nogil

# The cluster extensions are no members of the function list; each is resolved by its name.
ctypedef CK_RV (*CA_GetSlotId_t)(CK_UTF8CHAR *label, CK_SLOT_ID *pSlotId,
                                 CK_ULONG *pulCount) noexcept nogil
ctypedef CK_RV (*CA_GetUnassignedSlot_t)(const CK_CHAR *clusterID,
                                         CK_UNASSIGNED_SLOT_INFO *pUnassignedSlot) noexcept nogil
ctypedef CK_RV (*CA_LockClusteredSlot_t)(CK_SLOT_ID slotID) noexcept nogil
ctypedef CK_RV (*CA_UnlockClusteredSlot_t)(CK_SLOT_ID slotID) noexcept nogil
# Only some clients have it. The label is not padded, its length is given.
ctypedef CK_RV (*CA_ChangeLabel_t)(CK_SESSION_HANDLE hSession, CK_SLOT_ID slotID, CK_CHAR *pLabel,
                                   CK_ULONG ulLabelLen) noexcept nogil
