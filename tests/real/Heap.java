import java.util.Arrays;
import java.util.HashMap;
import java.util.Map;
import java.util.Random;

/** Keeps so many thousand records in two threads, replaces a part of them again and again, collects, and checks every one. */
public final class Heap {
    static final class Entry {
        final int n;
        final String text;
        final int[] list;

        Entry(int n) {
            this.n = n;
            this.text = (n + "-").repeat(4 + Math.floorMod(n, 29));
            this.list = new int[16];
            for (int j = 0; j < list.length; j++) list[j] = n + j;
        }

        boolean isRight() {
            Entry other = new Entry(n);
            return other.text.equals(text) && Arrays.equals(other.list, list);
        }
    }

    static int work(int count, long seed) {
        Random random = new Random(seed);
        Map<Integer, Entry> entries = new HashMap<>();
        for (int n = 0; n < count; n++) entries.put(n, new Entry(random.nextInt()));
        int sum = 0;
        for (int round = 0; round < 4; round++) {
            for (int n = 0; n < count / 5; n++) entries.put(random.nextInt(count), new Entry(random.nextInt()));
            System.gc();
            for (int n = 0; n < count; n++) {
                Entry entry = entries.get(n);
                if (!entry.isRight()) throw new IllegalStateException("entry " + n);
                sum = sum * 31 + entry.n;
            }
        }
        return sum;
    }

    public static void main(String[] args) throws InterruptedException {
        int count = Integer.parseInt(args[0]) * 500;
        int[] sums = new int[2];
        Thread[] threads = new Thread[2];
        for (int t = 0; t < 2; t++) {
            int which = t;
            threads[t] = new Thread(() -> sums[which] = work(count, which));
            threads[t].start();
        }
        for (Thread thread : threads) thread.join();
        System.out.println(sums[0] + " " + sums[1]);
    }
}
