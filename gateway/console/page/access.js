// The API key, for as long as this tab is open.

const NAME = "batchyard-api-key";

export const key = () => sessionStorage.getItem(NAME);
export const useKey = (value) => sessionStorage.setItem(NAME, value);
export const forgetKey = () => sessionStorage.removeItem(NAME);

/** Headers that say who asks. */
export const credentials = () => (key() ? { Authorization: `Bearer ${key()}` } : {});
