/** Something with a place in an order; no two have the same. */
interface Ordered {
  readonly order: number;
}

/** A list that stays in order, in which each step takes the time of a binary search. */
export class OrderedList<T extends Ordered> {
  readonly #items: T[] = [];

  get length(): number {
    return this.#items.length;
  }

  get first(): T | undefined {
    return this.#items[0];
  }

  get last(): T | undefined {
    return this.#items.at(-1);
  }

  has(item: T): boolean {
    return this.#items[this.#indexFrom(item.order)] === item;
  }

  /** Puts it in its place; does nothing when it is there. */
  add(item: T): void {
    const index = this.#indexFrom(item.order);
    if (this.#items[index] !== item) this.#items.splice(index, 0, item);
  }

  /** Takes it out; does nothing when it is not there. */
  remove(item: T): void {
    const index = this.#indexFrom(item.order);
    if (this.#items[index] === item) this.#items.splice(index, 1);
  }

  [Symbol.iterator](): Iterator<T> {
    return this.#items[Symbol.iterator]();
  }

  /** Where the first one stands whose order is not below this. */
  #indexFrom(order: number): number {
    let low = 0;
    let high = this.#items.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((this.#items[middle]?.order ?? Infinity) < order) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}
